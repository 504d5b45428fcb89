// The models: what is on disk and in memory, what a download costs and how it goes on.

import { ask, get } from "./api.js";
import { refreshSystem } from "./app.js";
import { chip, find, h, render } from "./dom.js";
import { bytes, seconds } from "./format.js";
import { listen, state, update } from "./store.js";

const inMemory = (each, now) => now.system?.engines.some((engine) => engine.models.includes(each.title));

// What is fetched for a model, in words: weights that are quantized here are made of the whole repository.
export function fetched(each, now) {
  const source = now.models.find((other) => other.model_name === each.model_name && other.quantization !== "runtime");
  return source?.size_gb ? `${source.size_gb.toFixed(1)} GB` : "";
}

// What it takes to use a model, in words.
export function costs(each, now) {
  const status = now.statuses[each.title];
  if (status?.status === "downloading") {
    const left = seconds(status.eta_seconds);
    return `downloading ${bytes(status.bytes_done ?? 0)} of ${bytes(status.bytes_total ?? 0)}${left && `, ${left} left`}`;
  }
  if (inMemory(each, now)) return "in memory";
  if (each.downloaded) return "on disk";
  const free = now.diskFree ? `, ${Math.round(now.diskFree)} GB free` : "";
  return `${fetched(each, now)} to download${free}`.trim();
}

// A model in a line: what it is, whose licence it has, and what has to be done before it can be fetched.
export function about(each, now) {
  const gate = each.gated && !each.downloaded && `gated: accept the licence of ${each.model_name} at its hub, and start the server with HF_TOKEN`;
  return [each.description, each.licence, costs(each, now), gate].filter(Boolean).join(" · ");
}

async function refresh(title) {
  const [status, { models, disk_free_gb: diskFree }] = await Promise.all([get(`models/${encodeURIComponent(title)}/status`), get("models")]);
  update({ statuses: { ...state.statuses, [title]: status }, models, diskFree });
  return status;
}

const watched = new Set();

// A download tells how far it is when it is asked; it goes on when this page is closed.
async function watch(title) {
  if (watched.has(title)) return;
  watched.add(title);
  try {
    while ((await refresh(title)).status === "downloading") await new Promise((done) => setTimeout(done, 1000));
  } catch {
    // The stream of events says that the server is away.
  } finally {
    watched.delete(title);
    refreshSystem();
  }
}

async function act(title, what) {
  update({ manage: { title, problem: "", busy: true } });
  let problem = "";
  try {
    const path = encodeURIComponent(title);
    if (what === "delete") await ask("DELETE", `models/${path}`);
    if (what === "download") await ask("POST", `models/${path}/download`);
    if (what === "load") await ask("POST", `models/${path}/load`);
    if (what === "unload") await ask("POST", `models/${path}/unload`);
    watch(title);
  } catch (error) {
    problem = error.message;
  }
  update({ manage: { title, problem, busy: false } });
}

function row(each, now) {
  const status = now.statuses[each.title];
  const mine = now.manage?.title === each.title ? now.manage : null;
  const downloading = status?.status === "downloading";
  // What is removed has to be downloaded again: it takes a second press.
  const control = (text, what, sure) => chip(text, ({ target }) => {
    if (sure && target.textContent !== sure) target.textContent = sure;
    else act(each.title, what);
  }, undefined, { label: `${text}: ${each.title}`, disabled: Boolean(mine?.busy) });
  const bar = h("progress", { max: 100, label: `Download of ${each.title}` });
  bar.value = status?.percent ?? 0;
  return h("li",
    h("div.grow", h("b", each.title),
      h("p.quiet", about(each, now)), downloading && bar,
      h("p.wrong", { role: "alert" }, mine?.problem || status?.error || "")),
    downloading || each.downloaded ? null : control("Download", "download"),
    each.downloaded && (inMemory(each, now) ? control("Unload", "unload") : control("Load", "load")),
    each.downloaded && each.base !== "demo" && !each.title.startsWith("demo") && control("Remove", "delete", "Really remove"));
}

export function openModels() {
  const [dialog, word, rows] = ["models", "find-model", "rows"].map(find);
  word.oninput = () => update();
  dialog.showModal();
  const stop = listen((now) => {
    const found = now.models.filter((each) => each.title.includes(word.value.trim().toLowerCase())).sort((one, other) => other.downloaded - one.downloaded);
    render(rows, [found, now.statuses, now.manage, now.system?.engines.map((engine) => engine.models)], () => found.map((each) => row(each, now)));
  });
  dialog.onclose = stop;
  // Also what another client began.
  for (const each of state.models) if (!each.downloaded && state.statuses[each.title]) watch(each.title);
}
