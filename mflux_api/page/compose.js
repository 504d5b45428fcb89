// What to generate: the form, kept between visits.

import { toBase64 } from "./api.js";
import { submit } from "./app.js";
import { chip, h, icon, render } from "./dom.js";
import { openMask } from "./mask.js";
import { costs, fetched } from "./models.js";
import { isUpscaler, listen, masked, model, running, setForm, state, update } from "./store.js";

const SHAPES = [["1:1", 1, 1], ["4:3", 4, 3], ["3:4", 3, 4], ["16:9", 16, 9], ["9:16", 9, 16]];
const MOST_IMAGES = 4;

function sizeFor(across, down) {
  const [width, height] = model()?.native_size ?? [512, 512];
  const unit = Math.sqrt((width * height) / (across * down));
  const snap = (value) => Math.min(2048, Math.max(64, Math.round(value / 16) * 16));
  return [snap(across * unit), snap(down * unit)];
}

export function bodyOf(form, chosen) {
  const body = { prompt: form.prompt.trim(), model: chosen?.title, num_images: form.num_images };
  if (form.seed !== null) body.seed = form.seed;
  if (form.steps) body.steps = form.steps;
  // An image with a mask keeps its own size.
  if (!masked(form) && (!form.images.length || form.sized)) Object.assign(body, { width: form.width, height: form.height });
  if (chosen?.config.supports_guidance) {
    if (form.guidance !== null) body.guidance = form.guidance;
    if (form.negative_prompt.trim()) body.negative_prompt = form.negative_prompt.trim();
  }
  if (form.loras.length) Object.assign(body, { lora_files: form.loras.map((each) => each.name), lora_scales: form.loras.map((each) => each.scale) });
  if (form.images.length) Object.assign(body, { init_images: form.images.map((each) => each.base64), image_strength: form.strength });
  if (masked(form)) Object.assign(body, { mask: form.mask, extend: form.extend, mask_blur: form.blur, inpainting_fill: form.forget ? 0 : 1, image_strength: 1 });
  return body;
}

export async function addFiles(files) {
  const images = [...state.form.images];
  for (const file of files) {
    if (!file.type.startsWith("image/") || images.length === MOST_IMAGES) continue;
    images.push({ name: file.name ?? "image", url: URL.createObjectURL(file), base64: await toBase64(file) });
  }
  setForm({ images, ...(state.form.images.length ? {} : { mask: null, extend: null }) });
}

async function send() {
  const chosen = model();
  if (!state.form.prompt.trim() && !(chosen && isUpscaler(chosen))) {
    update({ errors: { prompt: "Say what the image should show" } });
    document.getElementById("prompt").focus();
    return;
  }
  await submit(bodyOf(state.form, chosen));
}

function number(id, label, value, limits, act, more = {}) {
  const input = h("input", { id, type: "number", inputmode: "decimal", value: value ?? "", ...limits, ...more, onchange: (event) => act(event.target.value === "" ? null : Number(event.target.value)) });
  return h("div.field", h("label", { for: id }, label), input, wrong(id));
}

const wrong = (field) => h("p.wrong", { id: `${field}-wrong`, role: "alert", data: { field } });

function modelOption(each, now) {
  const option = h("option", { value: each.title }, `${each.title} (${costs(each, now)})`);
  option.selected = each.title === (now.form.model || now.defaultModel);
  return option;
}

function loraRow(each, index) {
  const change = (scale) => setForm({ loras: state.form.loras.map((other, place) => (place === index ? { ...other, scale } : other)) });
  return h("li.lora",
    h("span.loraname", each.name),
    h("input", { type: "range", min: -2, max: 2, step: 0.05, value: each.scale, label: `Scale of ${each.name}`, onchange: (event) => change(Number(event.target.value)) }),
    h("output", each.scale.toFixed(2)),
    h("button.plainbutton", { label: `Remove ${each.name}`, onclick: () => setForm({ loras: state.form.loras.filter((_, place) => place !== index) }) }, icon("close")));
}

function reference(each, index, form) {
  return h("li.reference",
    h("img", { src: each.url, alt: each.name }),
    index === 0 && h("button.corner.left", { label: masked(form) ? "Change the mask" : "Draw a mask", title: "Mask", onclick: () => openMask(each) }, icon("brush")),
    h("button.corner", { label: `Remove ${each.name}`, onclick: () => setForm({ images: form.images.filter((_, place) => place !== index), ...(index === 0 && { mask: null, extend: null }) }) }, icon("close")),
    index === 0 && masked(form) && h("span.tag", form.mask ? "masked" : "extended"));
}

export function startCompose() {
  const place = document.getElementById("compose");
  const prompt = h("textarea", { id: "prompt", rows: 3, maxlength: 10000, placeholder: "A red house by a lake, mountains behind it", "aria-describedby": "prompt-wrong", oninput: (event) => { setForm({ prompt: event.target.value }); grow(); } });
  prompt.value = state.form.prompt;
  const grow = () => {
    prompt.style.height = "auto";
    prompt.style.height = `${Math.min(prompt.scrollHeight + 2, innerHeight / 3)}px`;
  };
  const models = h("select", { id: "model", onchange: (event) => setForm({ model: event.target.value, steps: null, guidance: null }) });
  const sizes = h("div.chips", { role: "group", label: "Shape" });
  const more = h("div.more");
  const loras = h("ul.loras", { label: "LoRAs" });
  const pick = h("select", { id: "lora", label: "Add a LoRA", onchange: (event) => { if (event.target.value) setForm({ loras: [...state.form.loras, { name: event.target.value, scale: 1 }] }); event.target.value = ""; } });
  const references = h("ul.references", { label: "Reference images" });
  const files = h("input", { type: "file", accept: "image/*", multiple: true, class: "unseen", id: "files", onchange: (event) => { addFiles(event.target.files); event.target.value = ""; } });
  const strength = h("div.field");
  const go = h("button.main.wide", { onclick: send });
  const notice = h("p.wrong", { role: "alert" });

  place.append(
    h("div.field", h("label", { for: "prompt" }, "Prompt"), prompt, wrong("prompt")),
    more,
    h("div.field", h("label", { for: "model" }, "Model"), models, wrong("model")),
    h("div.field", h("span.label", "Size"), sizes, wrong("width"), wrong("height")),
    h("div.row.numbers",
      h("div", { id: "numbers", class: "row" })),
    h("div.field", loras, pick, wrong("lora_files")),
    h("div.field.drop", references, h("label", { for: "files", class: "dropzone" }, icon("add"), "Reference images: drop, paste or choose"), files, wrong("init_images"), wrong("mask")),
    strength, notice, go);

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || document.querySelector("dialog[open]")) return;
    // A number that is being typed counts: its field tells of it when it is left.
    const field = document.activeElement;
    if (field?.tagName === "INPUT") field.blur();
    send();
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData?.files.length) addFiles(event.clipboardData.files);
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer?.files.length) addFiles(event.dataTransfer.files);
  });

  const numbers = place.querySelector("#numbers");
  listen((now) => {
    const { form } = now;
    const chosen = model();
    const guided = Boolean(chosen?.config.supports_guidance);
    if (prompt.value !== form.prompt) { prompt.value = form.prompt; grow(); }
    render(models, [now.models, now.system?.engines?.map((engine) => engine.models), now.statuses, form.model, now.defaultModel], () => now.models.map((each) => modelOption(each, now)));
    render(sizes, [form.width, form.height, chosen?.native_size], () => [
      ...SHAPES.map(([name, across, down]) => {
        const [width, height] = sizeFor(across, down);
        const on = width === form.width && height === form.height;
        return chip(name, () => setForm({ width, height, sized: true }), on);
      }),
      h("span.quiet", `${form.width} × ${form.height}`)]);
    render(numbers, [form.steps, form.seed, form.num_images, form.guidance, guided, chosen?.default_steps, chosen?.default_guidance], () => [
      number("steps", "Steps", form.steps, { min: 1, max: 200, placeholder: chosen?.default_steps ?? "" }, (steps) => setForm({ steps })),
      number("num_images", "Images", form.num_images, { min: 1, max: 4 }, (num_images) => setForm({ num_images: num_images ?? 1 })),
      guided && number("guidance", "Guidance", form.guidance, { min: 0, max: 30, step: 0.1, placeholder: chosen.default_guidance }, (guidance) => setForm({ guidance })),
      h("div.field.seed", h("label", { for: "seed" }, "Seed"),
        h("div.row",
          h("input", { id: "seed", type: "text", inputmode: "numeric", placeholder: "random", value: form.seed ?? "", onchange: (event) => setForm({ seed: /^\d{1,16}$/.test(event.target.value) ? Number(event.target.value) : null }) }),
          h("button.plainbutton", { label: form.seed === null ? "Keep one seed" : "A new seed each time", title: form.seed === null ? "Keep one seed" : "Random", onclick: () => setForm({ seed: form.seed === null ? Math.floor(Math.random() * 2 ** 32) : null }) }, icon(form.seed === null ? "die" : "lock"))),
        wrong("seed"))]);
    render(more, [guided], () => guided && h("div.field", h("label", { for: "negative" }, "What it should not show"),
      h("input", { id: "negative", type: "text", value: form.negative_prompt, onchange: (event) => setForm({ negative_prompt: event.target.value }) })));
    render(loras, form.loras, () => form.loras.map(loraRow));
    const free = now.loras.filter((each) => !form.loras.some((other) => other.name === each.name));
    render(pick, free.map((each) => each.name), () => [h("option", { value: "" }, free.length ? "Add a LoRA" : "No LoRA to add"),
      ...free.map((each) => h("option", { value: each.name }, each.layers ? `${each.name} (${each.layers_understood} of ${each.layers} layers)` : each.name))]);
    pick.disabled = !free.length;
    render(references, [form.images.map((each) => each.url), form.mask, form.extend], () => form.images.map((each, index) => reference(each, index, form)));
    render(strength, [form.images.length > 0, form.strength, masked(form)], () => form.images.length > 0 && !masked(form) && [
      h("label", { for: "strength" }, `How much to change: ${Math.round(form.strength * 100)} %`),
      h("input", { id: "strength", type: "range", min: 0, max: 1, step: 0.05, value: form.strength, onchange: (event) => setForm({ strength: Number(event.target.value) }) })]);
    const waiting = [...now.jobs.values()].filter(running).length;
    // Gigabytes are never fetched by a press that did not say so.
    const press = !chosen || chosen.downloaded ? "Generate" : ["Download", fetched(chosen, now)].join(" ").trim() + ", then generate";
    go.textContent = waiting ? `${press} (${waiting} waiting)` : press;
    go.disabled = now.sending > 0;
    notice.textContent = now.notice;
    for (const element of place.querySelectorAll("[data-field]")) {
      const text = now.errors[element.dataset.field] ?? "";
      if (element.textContent !== text) element.textContent = text;
    }
  });
  grow();
}
