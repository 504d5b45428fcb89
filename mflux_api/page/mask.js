// A mask over an image, and what is added to its sides: both are generated anew.

import { chip, h, openDialog } from "./dom.js";
import { setForm, state } from "./store.js";

const MOST_UNDO = 20;
const MOST_PIXELS = 1024 * 1024; // The service scales a mask to its image, and an undo keeps all of it.
const GRID = 16;
const MOST_ADDED = 2048;
const EDGE = 40; // Room for the handles around the image.
const INK = [47, 91, 234];

export async function openMask(image) {
  const source = new Image();
  source.src = image.url;
  await source.decode();
  const { naturalWidth: width, naturalHeight: height } = source;
  const share = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)));
  const canvas = h("canvas.brushed", { width: Math.round(width * share), height: Math.round(height * share), role: "img", label: "Draw over what is to be generated anew" });
  const area = [0, 0, canvas.width, canvas.height];
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const undo = [];
  const added = { left: 0, top: 0, right: 0, bottom: 0, ...state.form.extend };
  let { blur, forget } = state.form;
  let size = Math.round(Math.min(canvas.width, canvas.height) / 8);
  let erasing = false;
  let stroke = null; // The pointer that draws, and where it was last.
  if (state.form.mask) await restore(pen, state.form.mask, area);

  const layers = h("div.layers", h("img", { src: image.url, alt: "" }), canvas);
  const ground = h("div.ground", layers);
  const ring = h("div.ring", { hidden: true });
  const board = h("div.board", ground, ring);
  const result = h("output.quiet");
  let scale = 1;
  let corner = [0, 0];
  const whole = () => [width + added.left + added.right, height + added.top + added.bottom];
  const put = (element, left, top, wide, high) => Object.assign(element.style, { left: `${left}px`, top: `${top}px`, width: `${wide}px`, height: `${high}px` });
  const place = () => {
    const [wide, high] = whole();
    put(ground, corner[0] - added.left * scale, corner[1] - added.top * scale, wide * scale, high * scale);
    put(layers, added.left * scale, added.top * scale, width * scale, height * scale);
    canvas.style.filter = `blur(${blur * scale}px) drop-shadow(0 0 2px #fff)`;
    result.textContent = `${wide} × ${high}`;
  };
  const fit = () => {
    const [wide, high] = whole();
    scale = Math.min((board.clientWidth - 2 * EDGE) / wide, (board.clientHeight - 2 * EDGE) / high);
    corner = [(board.clientWidth - wide * scale) / 2 + added.left * scale, (board.clientHeight - high * scale) / 2 + added.top * scale];
    place();
  };

  const handle = (side) => {
    const across = side === "left" || side === "right";
    const outwards = side === "left" || side === "top" ? -1 : 1;
    let from = null;
    const at = (event) => (across ? event.clientX : event.clientY) * outwards;
    const set = (value) => {
      added[side] = Math.min(MOST_ADDED, Math.max(0, Math.round(value / GRID) * GRID));
      knob.setAttribute("aria-valuenow", added[side]);
      place();
    };
    const knob = h("button", {
      class: `knob ${side}`, role: "slider", title: `Extend ${side}: drag, or arrow keys`, label: `Extend ${side}, pixels`,
      "aria-orientation": across ? "horizontal" : "vertical", "aria-valuemin": 0, "aria-valuemax": MOST_ADDED, "aria-valuenow": added[side],
      onpointerdown: (event) => { knob.setPointerCapture(event.pointerId); from = [at(event), added[side]]; },
      // The image stays where it is while a side is drawn out, and fits the board again afterwards.
      onpointermove: (event) => { if (from) set(from[1] + (at(event) - from[0]) / scale); },
      onlostpointercapture: () => { from = null; fit(); },
      onkeydown: (event) => {
        const step = { ArrowLeft: -GRID, ArrowUp: -GRID, ArrowRight: GRID, ArrowDown: GRID }[event.key];
        if (!step) return;
        event.preventDefault();
        set(added[side] + step * outwards);
        fit();
      },
    });
    return { knob, set };
  };
  const handles = Object.keys(added).map(handle);
  ground.append(...handles.map((each) => each.knob));

  const keep = () => {
    undo.push(pen.getImageData(...area));
    if (undo.length > MOST_UNDO) undo.shift();
  };
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
  };
  const draw = (event) => {
    const to = at(event);
    pen.globalCompositeOperation = erasing ? "destination-out" : "source-over";
    pen.strokeStyle = `rgb(${INK})`;
    pen.lineWidth = event.pointerType === "pen" ? size * (0.4 + event.pressure) : size;
    pen.lineCap = "round";
    pen.beginPath();
    pen.moveTo(...(stroke.last ?? to));
    pen.lineTo(to[0] + 0.01, to[1]);
    pen.stroke();
    stroke.last = to;
  };
  canvas.onpointerdown = (event) => {
    // A second finger, or the palm beside a pen, does not draw.
    if (stroke || event.button > 0) return;
    canvas.setPointerCapture(event.pointerId);
    keep();
    stroke = { id: event.pointerId };
    draw(event);
  };
  canvas.onpointermove = (event) => {
    if (stroke?.id !== event.pointerId) return;
    const all = event.getCoalescedEvents?.() ?? [];
    for (const each of all.length ? all : [event]) draw(each);
  };
  canvas.onlostpointercapture = () => { stroke = null; };
  board.onpointermove = (event) => {
    const across = (size / share) * scale;
    const box = board.getBoundingClientRect();
    ring.hidden = event.target !== canvas || event.pointerType === "touch";
    put(ring, event.clientX - box.left - across / 2, event.clientY - box.top - across / 2, across, across);
  };
  board.onpointerleave = () => { ring.hidden = true; };

  const slider = (label, value, min, max, act) => {
    const input = h("input", { type: "range", min, max, value, oninput: () => act(Number(input.value)) });
    return h("label.tool", label, input);
  };
  const brush = slider("Brush", size, 4, Math.round(Math.min(canvas.width, canvas.height) / 2), (value) => { size = value; });
  const said = h("output", `${blur} px`);
  const feather = slider("Feather", blur, 0, 64, (value) => { blur = value; said.textContent = `${value} px`; place(); });
  feather.append(said);
  const toggle = (text, title, on, act) => {
    const button = chip(text, () => { on = !on; button.setAttribute("aria-pressed", on); act(on); }, on, { title });
    return button;
  };
  const eraser = toggle("Eraser", "E", false, (on) => { erasing = on; });
  const back = () => { if (undo.length) pen.putImageData(undo.pop(), 0, 0); };
  const done = () => {
    const extend = Object.values(added).some(Boolean) ? added : null;
    setForm({ mask: maskOf(pen, area), extend, blur, forget });
    dialog.close();
    document.getElementById("prompt").focus();
  };
  const dialog = openDialog("Mask", "masking", board,
    h("div.row.tools", brush, eraser, feather,
      toggle("Forget what is there", "It starts from the colours around it: to take something away", forget, (on) => { forget = on; }),
      chip("Undo", back), chip("Invert", () => { keep(); paint(pen, area, (alpha) => (alpha > 127 ? 0 : 255), 3); }),
      chip("Clear", () => { keep(); pen.clearRect(...area); for (const each of handles) each.set(0); fit(); })),
    h("div.row.tools", h("p.quiet.hint", "What is covered is generated anew; draw the handles out to extend the image."), result,
      chip("Cancel", () => dialog.close()), h("button.main", { onclick: done }, "Use mask")));
  dialog.addEventListener("keydown", (event) => {
    const step = { "[": 0.8, "]": 1.25 }[event.key];
    const input = brush.querySelector("input");
    if (step) { input.value = Math.max(Number(input.value) * step, 4); size = Number(input.value); }
    if (event.key === "z" && (event.ctrlKey || event.metaKey)) back();
    if (event.key === "e") eraser.click();
  });
  new ResizeObserver(fit).observe(board);
}

// Every pixel is covered as far as a channel of it says.
function paint(pen, area, level, channel) {
  const pixels = pen.getImageData(...area);
  for (let place = 0; place < pixels.data.length; place += 4) pixels.data.set([...INK, level(pixels.data[place + channel])], place);
  pen.putImageData(pixels, 0, 0);
}

// White is generated anew, black is kept; nothing drawn is no mask.
function maskOf(pen, area) {
  const drawn = pen.getImageData(...area);
  let any = false;
  for (let place = 0; place < drawn.data.length; place += 4) {
    const level = drawn.data[place + 3] > 127 ? 255 : 0;
    any ||= level === 255;
    drawn.data.set([level, level, level, 255], place);
  }
  if (!any) return null;
  const canvas = h("canvas", { width: area[2], height: area[3] });
  canvas.getContext("2d").putImageData(drawn, 0, 0);
  return canvas.toDataURL("image/png").split(",")[1];
}

async function restore(pen, mask, area) {
  const source = new Image();
  source.src = `data:image/png;base64,${mask}`;
  await source.decode();
  pen.drawImage(source, ...area);
  paint(pen, area, (white) => (white > 127 ? 255 : 0), 0);
}
