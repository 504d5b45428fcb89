// Starts the views and keeps the state: one stream tells of all jobs, another one shows the image in the making.

import { ask, get, post } from "./api.js";
import { startCompose } from "./compose.js";
import { find, say } from "./dom.js";
import { stage as stageText } from "./format.js";
import { startHistory } from "./history.js";
import { startStage } from "./stage.js";
import { listen, model, putJob, running, state, update } from "./store.js";
import { startTop } from "./top.js";

const PAGE = 40;
const RETRY_SECONDS = 3; // What browsers wait before they open a stream again.

export async function loadAll() {
  try {
    const [session, models, loras, system, root] = await Promise.all([
      get("session"), get("models"), get("loras"), get("system"),
      fetch("./", { headers: { Accept: "application/json" } }).then((answer) => answer.json()),
    ]);
    update({ keyed: session.name !== null, models: models.models, diskFree: models.disk_free_gb, loras: loras.loras, system, defaultModel: root.model, needsKey: false });
    if (!state.form.sized && model()) [state.form.width, state.form.height] = model().native_size;
    await search();
    follow();
    const job = state.found.map((id) => state.jobs.get(id)).find(running);
    if (job && !state.shown) show(job.id);
  } catch (error) {
    if (error.status === 401) update({ needsKey: true, live: "key" });
    else {
      count(RETRY_SECONDS);
      retryLater();
    }
  }
}

let asked = 0;

export async function search(more = false) {
  if (more && state.loading) return;
  // What is typed meanwhile is asked for at once, and an answer to what was typed before is dropped.
  asked += 1;
  const mine = asked;
  update({ loading: true });
  const wanted = new URLSearchParams({ limit: PAGE });
  for (const [name, value] of Object.entries(state.search)) if (value) wanted.set(name, value);
  if (more && state.cursor) wanted.set("cursor", state.cursor);
  try {
    const page = await get(`jobs?${wanted}`);
    if (mine !== asked) return;
    for (const job of page.jobs) state.jobs.set(job.id, { ...state.jobs.get(job.id), ...job });
    const ids = page.jobs.map((job) => job.id);
    update({ found: more ? [...state.found, ...ids.filter((id) => !state.found.includes(id))] : ids, cursor: page.next_cursor });
  } catch (error) {
    if (mine === asked) update({ notice: error.message });
  } finally {
    if (mine === asked) update({ loading: false });
  }
}

let events = null;
let told = -1;
let counting = 0;

const retryLater = () => setTimeout(loadAll, RETRY_SECONDS * 1000);

function count(left) {
  clearTimeout(counting);
  update({ live: "reconnecting", retry: left });
  if (left) counting = setTimeout(count, 1000, left - 1);
}

function follow() {
  events?.close();
  events = new EventSource("api/v1/events");
  const on = (name, act) => events.addEventListener(name, (event) => act(JSON.parse(event.data)));
  events.onopen = () => {
    clearTimeout(counting);
    update({ live: "live" });
    refreshSystem();
  };
  events.onerror = () => {
    count(RETRY_SECONDS);
    // A browser gives up where the answer is no stream, such as that of a proxy whose server is away.
    if (events.readyState === EventSource.CLOSED) retryLater();
  };
  on("resync", () => search());
  on("progress", (job) => {
    const { preview, ...plain } = job;
    putJob(plain);
    if (!state.jobs.get(job.id).prompt) get(`jobs/${job.id}?images=url`).then(putJob, () => {});
    if (job.id === state.shown) announce(job);
  });
  for (const name of ["complete", "failed", "cancelled"]) {
    on(name, (job) => {
      putJob(job);
      if (job.id === state.shown) {
        update({ preview: null });
        say(name === "complete" ? "The image is ready" : job.error ?? "Cancelled");
      }
      refreshSystem();
    });
  }
}

function announce(job) {
  const quarter = Math.floor(job.progress * 4);
  if (quarter !== told) say(`${stageText(job)}, ${Math.round(job.progress * 100)} %`);
  told = quarter;
}

let stream = null;

export function show(id, chosen = 0) {
  stream?.close();
  stream = null;
  update({ shown: id, chosen, preview: null });
  if (!id) return;
  get(`jobs/${id}?images=url`).then(putJob, (error) => update({ notice: error.message }));
  const job = state.jobs.get(id);
  if (job && !running(job)) return;
  stream = new EventSource(`api/v1/jobs/${id}/stream?previews=jpeg&images=url`);
  stream.addEventListener("progress", (event) => {
    const { preview } = JSON.parse(event.data);
    if (preview && state.shown === id) update({ preview: `data:image/jpeg;base64,${preview}` });
  });
  for (const name of ["complete", "failed", "cancelled"]) stream.addEventListener(name, () => stream?.close());
}

export async function refreshSystem() {
  try {
    update({ system: await get("system") });
  } catch {
    // The stream of events says that the server is away.
  }
}

export async function cancel(id) {
  try {
    await ask("DELETE", `jobs/${id}`);
  } catch (error) {
    update({ notice: error.message });
  }
}

export async function submit(body, source) {
  update({ sending: state.sending + 1, errors: {}, notice: "" });
  try {
    const accepted = await post("generate", body);
    if (source) state.sources.set(accepted.job_id, source);
    // With what the service chose: the size of an edit is its image's.
    putJob(await get(`jobs/${accepted.job_id}?images=url`));
    show(accepted.job_id);
    return true;
  } catch (error) {
    if (error.status === 401) update({ needsKey: true });
    update(find(`${error.field}-wrong`)?.parentElement.checkVisibility() ? { errors: { [error.field]: error.message } } : { notice: error.message });
    return false;
  } finally {
    update({ sending: state.sending - 1 });
  }
}

startTop();
startCompose();
startStage();
startHistory();
listen((now) => {
  const job = now.shown ? now.jobs.get(now.shown) : null;
  document.title = job && running(job) ? `${Math.round((job.progress ?? 0) * 100)} % · mflux-api` : "mflux-api";
});
loadAll();
setInterval(refreshSystem, 15000);
// An engine that starts is there in seconds, and no event tells of it.
setInterval(() => { if (state.system?.engines.some((engine) => engine.status === "starting")) refreshSystem(); }, 2000);
