// The image in the making, and what can be done with it when it is there.

import { fetchImage, imagePath } from "./api.js";
import { cancel, submit } from "./app.js";
import { openCompare } from "./compare.js";
import { addFiles } from "./compose.js";
import { chip, h, icon, render } from "./dom.js";
import { facts, stage } from "./format.js";
import { openMask } from "./mask.js";
import { fetched } from "./models.js";
import { isUpscaler, listen, running, setForm, state, update } from "./store.js";

const EXAMPLES = ["a beautiful sunset over mountains", "a red house on the left, green hills", "a futuristic city at night"];
const shape = (job) => [job.request?.width ?? 1, job.request?.height ?? 1];

function empty() {
  return h("div.empty",
    h("h2", "What should it be?"),
    h("p", "Write a prompt, or begin with one of these:"),
    h("ul.examples", EXAMPLES.map((text) => h("li", chip(text, () => { setForm({ prompt: text }); document.getElementById("prompt").focus(); })))));
}

async function take(job, index) {
  const blob = await fetchImage(job.id, index);
  state.form.images = [];
  await addFiles([new File([blob], `${job.id}-${index}.png`, { type: blob.type })]);
  return state.form.images[0];
}

const guarded = (act) => async () => {
  try {
    await act();
  } catch (error) {
    update({ notice: error.message });
  }
};

function toForm(job, seed) {
  const asked = job.request;
  setForm({
    prompt: asked.prompt, model: asked.model, width: asked.width ?? state.form.width, height: asked.height ?? state.form.height, sized: true,
    steps: asked.steps ?? null, guidance: asked.guidance ?? null, negative_prompt: asked.negative_prompt ?? "", seed,
    loras: (asked.lora_files ?? []).map((name, index) => ({ name, scale: asked.lora_scales[index] })),
  });
}

function action(name, label, act) {
  return h("button.action", { onclick: guarded(act) }, icon(name), label);
}

// Browsers lend the clipboard to HTTPS and loopback alone; on a plain address of the network this is what there is.
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = h("textarea.unseen", { "aria-hidden": "true", value: text });
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  if (!copied) throw new Error("The browser does not let this page copy: select the prompt below instead");
  return undefined;
}

async function upscale(job, index) {
  const upscaler = state.models.find(isUpscaler);
  if (!upscaler.downloaded) throw new Error(`${upscaler.title} is not on disk (${fetched(upscaler, state)}): download it under Models`);
  await submit({ model: upscaler.title, init_images: [(await take(job, index)).base64], upscale: 2 });
}

function actions(job, index) {
  const seed = job.result?.seeds?.[index];
  const again = { ...job.request, seed, num_images: 1 };
  const needsImages = job.edit && "Its images are not kept with a job: add them first";
  return h("div.actions", { role: "group", label: "With this image" },
    action("edit", "Edit", async () => { await take(job, index); setForm({ strength: 1, prompt: "" }); document.getElementById("prompt").focus(); }),
    action("brush", "Mask", async () => openMask(await take(job, index))),
    action("vary", "Vary", () => (needsImages ? update({ notice: needsImages }) : submit({ ...again, seed: undefined }))),
    action("again", "Same again", () => { toForm(job, seed); if (needsImages) update({ notice: needsImages }); }),
    state.models.some(isUpscaler) && action("larger", "Upscale", () => upscale(job, index)),
    state.form.images.length > 0 && action("compare", "Compare", () => openCompare(state.form.images[0].url, imagePath(job.id, index))),
    action("copy", "Copy prompt", () => copy(job.prompt)),
    h("a.action", { href: imagePath(job.id, index), download: `${job.id}-${index}.png` }, icon("save"), "Download"));
}

function frameOf(job, now) {
  const [width, height] = shape(job);
  const frame = h("div.frame");
  frame.style.aspectRatio = `${width} / ${height}`;
  frame.style.setProperty("--ratio", width / height);
  const count = job.result?.images?.length ?? 0;
  if (count) {
    frame.append(h("img.final", { src: imagePath(job.id, now.chosen), alt: job.prompt, width, height }));
  } else if (now.preview) {
    frame.append(h("img.preview", { src: now.preview, alt: "The image in the making" }));
  }
  return frame;
}

function strip(job, now) {
  const count = job.result?.images?.length ?? 0;
  if (count < 2) return null;
  return h("div.strip", { role: "group", label: "Images of this job" }, Array.from({ length: count }, (_, index) =>
    h("button", { label: `Image ${index + 1}`, "aria-pressed": String(index === now.chosen), onclick: () => update({ chosen: index }) },
      h("img", { src: imagePath(job.id, index, "size=160&format=webp"), alt: "", loading: "lazy" }))));
}

export function startStage() {
  const place = document.getElementById("stage");
  const view = h("div.view");
  const line = h("div.line");
  const bar = h("progress", { max: 1, label: "Progress" });
  const words = h("span");
  const stop = chip("Cancel", () => cancel(state.shown));
  line.append(bar, words, stop);
  const below = h("div.below");
  place.append(view, line, below);

  document.addEventListener("keydown", (event) => {
    const job = state.jobs.get(state.shown);
    const count = job?.result?.images?.length ?? 0;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || count < 2 || /INPUT|TEXTAREA|SELECT/.test(document.activeElement?.tagName ?? "")) return;
    update({ chosen: (state.chosen + step + count) % count });
  });

  listen((now) => {
    const job = now.shown ? now.jobs.get(now.shown) : null;
    render(view, job ? [job.id, now.chosen, now.preview, job.result?.images, shape(job)] : "empty", () => (job ? frameOf(job, now) : empty()));
    const busy = Boolean(job && running(job));
    line.classList.toggle("idle", !busy);
    stop.disabled = !busy;
    if (busy) {
      bar.value = job.progress ?? 0;
      words.textContent = stage(job);
    }
    render(below, job ? [job.id, job.status, now.chosen, job.error, job.warnings, job.result?.seeds, job.request, now.models.length, now.form.images.length] : null, () => job && [
      job.status === "failed" && h("p.wrong", { role: "alert" }, job.error),
      job.status === "cancelled" && h("p.quiet", "Cancelled."),
      (job.warnings ?? []).map((text) => h("p.warned", text)),
      strip(job, now),
      job.result?.images?.length > 0 && actions(job, now.chosen),
      h("p.facts", facts(job, job.result?.seeds?.[now.chosen])),
      job.prompt && h("p.said", job.prompt)]);
  });
}
