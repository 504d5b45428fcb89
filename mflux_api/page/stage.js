// The image in the making, and what can be done with it when it is there.

import { fetchImage, imagePath } from "./api.js";
import { cancel, submit } from "./app.js";
import { openCompare } from "./compare.js";
import { addFiles, choose, openCompose } from "./compose.js";
import { find, h, icon, isFree, render, say } from "./dom.js";
import { facts, stage } from "./format.js";
import { openMask } from "./mask.js";
import { fetched } from "./models.js";
import { isUpscaler, listen, model, running, setForm, state, update } from "./store.js";

const FADE = 150;
const shape = (job) => [job.request?.width ?? 1, job.request?.height ?? 1];
const imagesOf = (job) => job?.result?.images?.length ?? 0;

const guarded = (act) => async () => {
  try {
    await act();
  } catch (error) {
    update({ notice: error.message });
  }
};

// The examples are the demo's own, which is there at once.
function begin(prompt) {
  if (!model()?.downloaded) choose("demo");
  setForm({ prompt });
  find("go").click();
}

async function take(job, index) {
  const blob = await fetchImage(job.id, index);
  state.form.images = [];
  await addFiles([new File([blob], `${job.id}-${index}.png`, { type: blob.type })]);
  return state.form.images[0];
}

function toForm(job, changes) {
  const asked = job.request;
  setForm({
    prompt: asked.prompt ?? "", model: asked.model, width: asked.width ?? state.form.width, height: asked.height ?? state.form.height, sized: true,
    steps: asked.steps ?? null, guidance: asked.guidance ?? null, negative_prompt: asked.negative_prompt ?? "",
    loras: (asked.lora_files ?? []).map((name, index) => ({ name, scale: asked.lora_scales?.[index] ?? 1 })), images: [], mask: null, extend: null, ...changes,
  });
  if (job.edit) update({ notice: "Its images are not kept with a job: add them again" });
}

const action = (name, label, act) => h("button.action", { onclick: guarded(act) }, icon(name), label);

// Browsers lend the clipboard to HTTPS and loopback alone; on a plain address of the network this is what there is.
async function copy(text) {
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else {
    const field = h("textarea.unseen", { "aria-hidden": "true", value: text });
    document.body.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    if (!copied) throw new Error("The browser does not let this page copy: select the prompt below instead");
  }
  say("Copied");
}

async function upscale(job, index) {
  const upscaler = state.models.find(isUpscaler);
  if (!upscaler.downloaded) throw new Error(`${upscaler.title} is not on disk (${fetched(upscaler, state)}): download it under Models`);
  await submit({ model: upscaler.title, init_images: [(await take(job, index)).base64], upscale: 2 }, imagePath(job.id, index));
}

// A job again, in another way; one that needs images is left to the form.
const retry = (job, changes) => (job.edit ? (toForm(job, changes), openCompose()) : submit({ ...job.request, ...changes }));

function actions(job, index) {
  const seed = job.result?.seeds?.[index];
  return h("div.actions", { role: "group", label: "With this image" },
    action("edit", "Edit", async () => { await take(job, index); setForm({ strength: 1, prompt: "" }); openCompose(); }),
    action("brush", "Mask", async () => openMask(await take(job, index))),
    action("vary", "Vary", () => retry(job, { seed: undefined, num_images: 1 })),
    action("again", "Same again", () => { toForm(job, { seed }); openCompose(); }),
    state.models.some(isUpscaler) && action("larger", "Upscale", () => upscale(job, index)),
    state.sources.has(job.id) && action("compare", "Compare", () => openCompare(state.sources.get(job.id), imagePath(job.id, index))),
    action("copy", "Copy prompt", () => copy(job.prompt)),
    h("a.action", { href: imagePath(job.id, index), download: `${job.id}-${index}.png` }, icon("save"), "Download"));
}

const TITLES = { OOM_ERROR: "Not enough memory", MODEL_GATED: "The model's licence has to be accepted", ENGINE_CRASHED: "The engine crashed" };

// What helps a job without an image: the service's own sentence, and its suggestions as buttons.
function outcome(job) {
  const { suggestion = "", url = "" } = job.details ?? {};
  const smaller = state.models.find((each) => suggestion.split(/[\s,]+/).includes(each.title));
  const use = () => (smaller.downloaded ? retry(job, { model: smaller.title }) : (toForm(job, { model: smaller.title }), openCompose()));
  return h("div.empty", h("h2", job.status === "cancelled" ? "Cancelled" : TITLES[job.code] ?? "It did not work"), job.error && h("p", { role: "alert" }, job.error), h("div.actions",
    smaller && h("button.main", { onclick: use }, `Use ${smaller.title}`),
    suggestion.includes("low_ram") && action("again", "With less memory, slower", () => retry(job, { low_ram: true })),
    url.startsWith("https:") && h("a.action", { href: url, target: "_blank", rel: "noreferrer" }, icon("key"), "Read and accept the licence"),
    action("again", "Try again", () => retry(job, {}))));
}

// The image before stays below until the next one is there: nothing flashes, nothing moves.
function put(frame, src, kind, alt) {
  if (frame.lastChild?.getAttribute("src") === src) return;
  const image = h(`img.${kind}`, { src, alt, onerror: () => { image.alt = "This image is no longer on disk"; }, onload: () => setTimeout(() => { while (image.previousSibling) image.previousSibling.remove(); }, FADE) });
  frame.append(image);
}

function frameOf(job) {
  const [width, height] = shape(job);
  const frame = h("div.frame");
  frame.style.aspectRatio = `${width} / ${height}`;
  frame.style.setProperty("--ratio", width / height);
  return frame;
}

function strip(job, now) {
  const count = imagesOf(job);
  const all = running(job) ? job.request?.num_images : count;
  return all > 1 && h("div.strip", { role: "group", label: "Images of this job" }, Array.from({ length: all }, (_, index) => {
    const button = h("button", { label: `Image ${index + 1}`, "aria-pressed": String(index === now.chosen), disabled: index >= count, onclick: () => update({ chosen: index }) },
      index < count && h("img", { src: imagePath(job.id, index, "size=160&format=webp"), alt: "" }));
    button.style.aspectRatio = shape(job).join(" / ");
    return button;
  }));
}

export function startStage() {
  const [view, line, bar, words] = ["view", "line", "bar", "words"].map(find);
  for (const example of find("empty").querySelectorAll("button")) example.onclick = () => begin(example.textContent);
  find("stop").onclick = () => cancel(state.shown);

  document.addEventListener("keydown", (event) => {
    const count = imagesOf(state.jobs.get(state.shown));
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && count > 1 && isFree()) update({ chosen: (state.chosen + step + count) % count });
  });

  listen((now) => {
    const job = now.shown ? now.jobs.get(now.shown) : null;
    find("empty").hidden = Boolean(job);
    view.hidden = !job;
    const done = imagesOf(job) > 0;
    const busy = Boolean(job && running(job));
    const failed = job && !busy && !done && job.status !== "completed";
    render(view, job && [job.id, shape(job), failed && now.models.length], () => job && (failed ? outcome(job) : frameOf(job)));
    if (done) put(view.firstChild, imagePath(job.id, now.chosen), "final", job.prompt);
    else if (busy && now.preview) put(view.firstChild, now.preview, "preview", "The image in the making");
    line.hidden = !busy;
    if (busy) {
      bar.value = job.progress ?? 0;
      words.textContent = stage(job);
    }
    render(find("acts"), done && [job.id, job.status, now.chosen, job.result?.seeds, now.models.length, now.sources.has(job?.id)], () => done && actions(job, now.chosen));
    render(find("told"), job && [job.id, job.status, now.chosen, job.warnings, job.result?.seeds, job.request], () => {
      if (!job) return null;
      const text = facts(job, job.result?.seeds?.[now.chosen] ?? job.request?.seed);
      return [strip(job, now), h("button.facts", { title: "Copy", onclick: guarded(() => copy(text)) }, text), h("p.said", job.prompt),
        (job.warnings ?? []).map((warning) => h("p.warned", warning))];
    });
  });
}
