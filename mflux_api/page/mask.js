// Drawing a mask over an image: what is covered is generated anew.

import { h } from "./dom.js";
import { setForm, state } from "./store.js";

const MOST_UNDO = 20;

function layer(width, height) {
  const canvas = h("canvas", {});
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

export async function openMask(image) {
  const source = new Image();
  source.src = image.url;
  await source.decode();
  const { naturalWidth: width, naturalHeight: height } = source;
  const canvas = layer(width, height);
  canvas.className = "brushed";
  canvas.setAttribute("aria-label", "Draw over what is to be generated anew");
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const undo = [];
  let size = Math.round(Math.min(width, height) / 8);
  let erasing = false;
  let last = null;
  if (state.form.mask) await restore(pen, state.form.mask, width, height);

  const keep = () => {
    undo.push(pen.getImageData(0, 0, width, height));
    if (undo.length > MOST_UNDO) undo.shift();
  };
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  };
  const draw = (from, to) => {
    pen.globalCompositeOperation = erasing ? "destination-out" : "source-over";
    pen.strokeStyle = "#2f5bea";
    pen.lineWidth = size;
    pen.lineCap = "round";
    pen.beginPath();
    pen.moveTo(...from);
    pen.lineTo(to[0] + 0.01, to[1]);
    pen.stroke();
  };
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    keep();
    last = at(event);
    draw(last, last);
  };
  canvas.onpointermove = (event) => {
    if (!last) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) {
      const next = at(each);
      draw(last, next);
      last = next;
    }
  };
  canvas.onpointerup = canvas.onpointercancel = () => { last = null; };

  const brush = h("input", { type: "range", min: 4, max: Math.round(Math.min(width, height) / 2), value: size, "aria-label": "Size of the brush", oninput: (event) => { size = Number(event.target.value); } });
  const eraser = h("button", { class: "chip", "aria-pressed": "false", onclick: () => { erasing = !erasing; eraser.classList.toggle("on", erasing); eraser.setAttribute("aria-pressed", String(erasing)); } }, "Eraser");
  const invert = () => {
    keep();
    const pixels = pen.getImageData(0, 0, width, height);
    for (let place = 0; place < pixels.data.length; place += 4) {
      pixels.data.set([47, 91, 234, pixels.data[place + 3] > 127 ? 0 : 255], place);
    }
    pen.putImageData(pixels, 0, 0);
  };
  const back = () => { if (undo.length) pen.putImageData(undo.pop(), 0, 0); };
  const done = () => {
    const mask = maskOf(pen, width, height);
    setForm({ mask });
    dialog.close();
    document.getElementById("prompt").focus();
  };
  const dialog = h("dialog", { class: "over", "aria-label": "Mask" },
    h("div", { class: "sheet" }, h("div", { class: "layers" }, h("img", { src: image.url, alt: "" }), canvas)),
    h("div", { class: "row tools" }, brush, eraser,
      h("button", { class: "chip", onclick: back }, "Undo"), h("button", { class: "chip", onclick: invert }, "Invert"),
      h("button", { class: "chip", onclick: () => { keep(); pen.clearRect(0, 0, width, height); } }, "Clear"),
      h("span", { class: "grow" }), h("button", { class: "chip", onclick: () => dialog.close() }, "Cancel"), h("button", { class: "main", onclick: done }, "Use mask")));
  dialog.addEventListener("keydown", (event) => {
    const step = { "[": -8, "]": 8 }[event.key];
    if (step) { size = Math.max(4, size + step); brush.value = size; }
    if (event.key === "z" && (event.ctrlKey || event.metaKey)) back();
  });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

// White is generated anew, black is kept; nothing drawn is no mask.
function maskOf(pen, width, height) {
  const drawn = pen.getImageData(0, 0, width, height);
  let any = false;
  for (let place = 0; place < drawn.data.length; place += 4) {
    const level = drawn.data[place + 3] > 127 ? 255 : 0;
    any ||= level === 255;
    drawn.data.set([level, level, level, 255], place);
  }
  if (!any) return null;
  const canvas = layer(width, height);
  canvas.getContext("2d").putImageData(drawn, 0, 0);
  return canvas.toDataURL("image/png").split(",")[1];
}

async function restore(pen, mask, width, height) {
  const source = new Image();
  source.src = `data:image/png;base64,${mask}`;
  await source.decode();
  pen.drawImage(source, 0, 0, width, height);
  const pixels = pen.getImageData(0, 0, width, height);
  for (let place = 0; place < pixels.data.length; place += 4) {
    pixels.data.set([47, 91, 234, pixels.data[place] > 127 ? 255 : 0], place);
  }
  pen.putImageData(pixels, 0, 0);
}
