// What to generate: the form, kept between visits. On a narrow screen it is a sheet from below.

import { toBase64 } from "./api.js";
import { submit } from "./app.js";
import { find, h, icon, render } from "./dom.js";
import { openMask } from "./mask.js";
import { about, costs, fetched } from "./models.js";
import { isUpscaler, listen, masked, model, setForm, state, update } from "./store.js";

const NUMBERS = ["steps", "guidance", "num_images", "width", "height"];
const MOST_IMAGES = 4;
const BYTES_OF_A_TOKEN = 4; // An estimate, as that of the API's own `usage`.
const narrow = matchMedia("(max-width: 720px), (max-width: 960px) and (max-height: 480px)");

function sizeFor(shape) {
  const [across, down] = shape.split(":");
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

// Another model: the shape stays, in the size that it was made for.
export function choose(title) {
  const shape = find("shapes").querySelector("[aria-pressed=true]")?.textContent;
  setForm({ model: title, steps: null, guidance: null });
  const [width, height] = shape ? sizeFor(shape) : model().native_size;
  if (shape || !state.form.sized) setForm({ width, height });
}

export async function addFiles(files) {
  const images = [...state.form.images];
  for (const file of files) {
    if (!file.type.startsWith("image/") || images.length === MOST_IMAGES) continue;
    images.push({ name: file.name ?? "image", url: URL.createObjectURL(file), base64: await toBase64(file) });
  }
  setForm({ images, ...(state.form.images.length ? {} : { mask: null, extend: null }) });
}

export function openCompose() {
  const sheet = find("sheet");
  if (narrow.matches && !sheet.open) {
    sheet.append(find("compose"));
    sheet.showModal();
  }
  find("prompt").focus();
}

const closeSheet = () => find("sheet").close();

async function send() {
  const chosen = model();
  if (!state.form.prompt.trim() && !(chosen && isUpscaler(chosen))) {
    update({ errors: { prompt: "Say what the image should show" } });
    openCompose();
  } else if (await submit(bodyOf(state.form, chosen), state.form.images[0]?.url)) {
    closeSheet();
    if (narrow.matches) scrollTo(0, 0);
  }
}

function modelOption(each, now) {
  const option = h("option", { value: each.title }, `${each.title} (${costs(each, now)})`);
  option.selected = each.title === (now.form.model || now.defaultModel);
  return option;
}

function loraRow(each, index) {
  const others = state.form.loras.filter((_, place) => place !== index);
  return h("li.lora",
    h("span.loraname", { title: each.name }, each.name),
    h("input", { type: "range", min: -2, max: 2, step: 0.05, value: each.scale, label: `Scale of ${each.name}`, onchange: (event) => setForm({ loras: others.toSpliced(index, 0, { ...each, scale: Number(event.target.value) }) }) }),
    h("output", each.scale.toFixed(2)),
    h("button.plainbutton", { label: `Remove ${each.name}`, onclick: () => setForm({ loras: others }) }, icon("close")));
}

function reference(each, index, form) {
  const remove = () => setForm({ images: form.images.filter((other) => other !== each), ...(index === 0 && { mask: null, extend: null }) });
  return h("li.reference",
    h("img", { src: each.url, alt: each.name }),
    index === 0 && h("button.corner.left", { label: masked(form) ? "Change the mask" : "Draw a mask", title: "Mask", onclick: () => openMask(each) }, icon("brush")),
    h("button.corner", { label: `Remove ${each.name}`, onclick: remove }, icon("close")),
    index === 0 && masked(form) && h("span.tag", form.mask ? "masked" : "extended"));
}

export function startCompose() {
  const prompt = find("prompt");
  const grow = () => {
    prompt.style.height = "auto";
    prompt.style.height = `${Math.min(prompt.scrollHeight + 2, innerHeight / 3)}px`;
  };
  const on = (id, name, act) => find(id).addEventListener(name, (event) => act(event.target));
  on("prompt", "input", () => { setForm({ prompt: prompt.value }); grow(); });
  on("negative_prompt", "change", ({ value }) => setForm({ negative_prompt: value }));
  on("model", "change", ({ value }) => choose(value));
  for (const id of NUMBERS) {
    const least = { num_images: 1, width: 512, height: 512 }[id] ?? null;
    on(id, "change", ({ value }) => setForm({ [id]: value === "" ? least : Number(value), ...(least > 1 && { sized: true }) }));
  }
  on("seed", "change", ({ value }) => setForm({ seed: /^\d{1,16}$/.test(value) ? Number(value) : null }));
  on("die", "click", () => setForm({ seed: state.form.seed === null ? Math.floor(Math.random() * 2 ** 32) : null }));
  on("lora", "change", (pick) => { if (pick.value) setForm({ loras: [...state.form.loras, { name: pick.value, scale: 1 }] }); pick.value = ""; });
  on("files", "change", (files) => { addFiles(files.files); files.value = ""; });
  on("strength", "input", ({ value }) => setForm({ strength: Number(value) }));
  on("from-history", "click", () => {
    closeSheet();
    update({ picked: new Set() });
    document.querySelector(".tile")?.focus();
  });
  find("sheet").onclose = () => document.querySelector(".room").prepend(find("compose"));
  on("close-sheet", "click", closeSheet);
  on("opener", "click", openCompose);
  on("go", "click", send);
  narrow.addEventListener("change", closeSheet);

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || document.querySelector("dialog[open]:not(#sheet)")) return;
    // A number that is being typed counts: its field tells of it when it is left.
    const field = document.activeElement;
    if (field?.tagName === "INPUT") { field.blur(); field.focus(); }
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

  // What is being typed is not touched.
  const fill = (id, value, placeholder) => {
    const field = find(id);
    if (field !== document.activeElement) field.value = value ?? "";
    if (placeholder !== undefined) field.placeholder = placeholder;
  };
  listen((now) => {
    const { form } = now;
    const chosen = model();
    const guided = Boolean(chosen?.config.supports_guidance);
    if (prompt.value !== form.prompt) { prompt.value = form.prompt; grow(); }
    const tokens = Math.ceil(new Blob([form.prompt]).size / BYTES_OF_A_TOKEN);
    const most = chosen?.config.max_sequence_length;
    find("tokens").textContent = tokens > most * 0.8 ? `About ${tokens} of ${most} tokens` : "";
    fill("negative_prompt", form.negative_prompt);
    find("negative").hidden = find("guided").hidden = !guided;
    render(find("model"), [now.models, now.system?.engines?.map((engine) => engine.models), now.statuses, form.model, now.defaultModel], () => now.models.map((each) => modelOption(each, now)));
    find("about").textContent = chosen && !chosen.downloaded ? about(chosen, now) : "";
    for (const shape of find("shapes").children) {
      const [width, height] = sizeFor(shape.textContent);
      shape.onclick = () => setForm({ width, height, sized: true });
      shape.ariaPressed = width === form.width && height === form.height;
      shape.title = `${width} × ${height}`;
    }
    for (const id of NUMBERS) fill(id, form[id], chosen?.[`default_${id}`] ?? "");
    fill("seed", form.seed);
    render(find("die"), form.seed === null, () => icon(form.seed === null ? "die" : "lock"));
    find("die").title = find("die").ariaLabel = form.seed === null ? "Keep one seed" : "A new seed each time";
    render(find("loras"), form.loras, () => form.loras.map(loraRow));
    const free = now.loras.filter((each) => !form.loras.some((other) => other.name === each.name));
    render(find("lora"), free.map((each) => each.name), () => [h("option", { value: "" }, "Add a LoRA"),
      ...free.map((each) => h("option", { value: each.name }, each.layers ? `${each.name} (${each.layers_understood} of ${each.layers} layers)` : each.name))]);
    find("lora").hidden = !free.length;
    find("styles").hidden = !now.loras.length;
    render(find("references"), [form.images.map((each) => each.url), form.mask, form.extend], () => form.images.map((each, index) => reference(each, index, form)));
    find("change").hidden = !form.images.length || masked(form);
    find("changed").textContent = `${Math.round(form.strength * 100)} %`;
    fill("strength", form.strength);
    find("adding").hidden = form.images.length === MOST_IMAGES;
    find("from-history").hidden = !now.found.length;
    const waiting = [...now.jobs.values()].filter((job) => job.status === "queued").length;
    // Gigabytes are never fetched by a press that did not say so.
    const press = !chosen || chosen.downloaded ? "Generate" : ["Download", fetched(chosen, now)].join(" ").trim() + ", then generate";
    find("go").textContent = waiting ? `${press} (${waiting} waiting)` : press;
    find("go").disabled = now.sending > 0;
    render(find("opener"), form.prompt, () => [icon("edit"), h("span.said", form.prompt || "Describe an image")]);
    for (const element of document.querySelectorAll("[data-field]")) {
      const text = now.errors[element.dataset.field] ?? "";
      // The room of what is mended stays until the next press: nothing moves under one.
      const mended = !text && !now.sending;
      element.classList.toggle("mended", mended);
      if (!mended) element.textContent = text;
      find(element.dataset.field)?.setAttribute("aria-invalid", Boolean(text));
    }
  });
  grow();
}
