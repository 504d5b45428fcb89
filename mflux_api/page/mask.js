// A mask over an image, and what is added to its sides: both are generated anew.

import { openCompose } from "./compose.js";
import { find, h } from "./dom.js";
import { setForm, state } from "./store.js";

const MOST_UNDO = 20;
const MOST_PIXELS = 1024 * 1024; // The service scales a mask to its image, and an undo keeps all of it.
const GRID = 16;
const MOST_ADDED = 2048;
const EDGE = 40; // Room for the handles around the image.
const INK = [127, 157, 255]; // A mask that covers all is read by its brightness.

export async function openMask(image) {
  const dialog = find("masking");
  const [board, ground, ring, brush] = ["board", "ground", "ring", "brush"].map(find);
  const [shown, canvas] = dialog.querySelectorAll("img, canvas");
  shown.src = image.url;
  await shown.decode();
  const { naturalWidth: width, naturalHeight: height } = shown;
  const share = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)));
  Object.assign(canvas, { width: Math.round(width * share), height: Math.round(height * share) });
  const area = [0, 0, canvas.width, canvas.height];
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const undo = [];
  const added = { left: 0, top: 0, right: 0, bottom: 0, ...state.form.extend };
  let { blur, forget } = state.form;
  let erasing = false;
  let stroke = null; // The pointer that draws, and where it was last.
  if (state.form.mask) {
    const before = h("img", { src: `data:image/png;base64,${state.form.mask}` });
    await before.decode();
    pen.drawImage(before, 0, 0);
  }

  let scale = 1;
  let corner = [0, 0];
  const whole = () => [width + added.left + added.right, height + added.top + added.bottom];
  const put = (element, ...places) => ["left", "top", "width", "height"].forEach((name, index) => { element.style[name] = `${places[index]}px`; });
  const place = () => {
    const [wide, high] = whole();
    put(ground, corner[0] - added.left * scale, corner[1] - added.top * scale, wide * scale, high * scale);
    put(ground.firstChild, added.left * scale, added.top * scale, width * scale, height * scale);
    canvas.style.filter = `blur(${blur * scale}px) drop-shadow(0 0 2px #fff)`;
    for (const side of Object.keys(added)) ground.querySelector(`.${side}`).ariaValueNow = added[side];
    find("extended").textContent = `${wide} × ${high}`;
    find("feathered").textContent = `${blur} px`;
  };
  const fit = () => {
    const [wide, high] = whole();
    scale = Math.min((board.clientWidth - 2 * EDGE) / wide, (board.clientHeight - 2 * EDGE) / high);
    corner = [(board.clientWidth - wide * scale) / 2 + added.left * scale, (board.clientHeight - high * scale) / 2 + added.top * scale];
    place();
  };

  for (const side of Object.keys(added)) {
    const knob = ground.querySelector(`.${side}`);
    const across = side === "left" || side === "right";
    const outwards = side === "left" || side === "top" ? -1 : 1;
    let from = null;
    const at = (event) => (across ? event.clientX : event.clientY) * outwards;
    const set = (value) => {
      added[side] = Math.min(MOST_ADDED, Math.max(0, Math.round(value / GRID) * GRID));
      place();
    };
    knob.onpointerdown = (event) => {
      knob.setPointerCapture(event.pointerId);
      from = [at(event), added[side]];
    };
    // The image stays where it is while a side is drawn out, and fits the board again afterwards.
    knob.onpointermove = (event) => { if (from) set(from[1] + (at(event) - from[0]) / scale); };
    knob.onlostpointercapture = () => {
      from = null;
      fit();
    };
    knob.onkeydown = (event) => {
      const step = { ArrowLeft: -GRID, ArrowUp: -GRID, ArrowRight: GRID, ArrowDown: GRID }[event.key];
      if (!step) return;
      event.preventDefault();
      set(added[side] + step * outwards);
      fit();
    };
  }

  const keep = () => {
    undo.push(pen.getImageData(...area));
    if (undo.length > MOST_UNDO) undo.shift();
  };
  const draw = (event) => {
    const box = canvas.getBoundingClientRect();
    const to = [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
    pen.globalCompositeOperation = erasing ? "destination-out" : "source-over";
    pen.strokeStyle = `rgb(${INK})`;
    pen.lineWidth = event.pointerType === "pen" ? brush.value * (0.4 + event.pressure) : brush.value;
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
    const across = (brush.value / share) * scale;
    const box = board.getBoundingClientRect();
    ring.hidden = event.target !== canvas || event.pointerType === "touch";
    put(ring, event.clientX - box.left - across / 2, event.clientY - box.top - across / 2, across, across);
  };

  const toggle = (id, on, act) => {
    const set = (value) => {
      on = value;
      find(id).ariaPressed = on;
      act(on);
    };
    find(id).onclick = () => set(!on);
    set(on);
  };
  toggle("eraser", false, (on) => { erasing = on; });
  toggle("forget", forget, (on) => { forget = on; });
  brush.max = Math.round(Math.min(canvas.width, canvas.height) / 2);
  brush.value = brush.max / 4;
  const feather = find("feather");
  feather.value = blur;
  feather.oninput = () => {
    blur = Number(feather.value);
    place();
  };
  find("undo").onclick = () => { if (undo.length) pen.putImageData(undo.pop(), 0, 0); };
  find("invert").onclick = () => {
    keep();
    const pixels = pen.getImageData(...area);
    for (let place = 0; place < pixels.data.length; place += 4) pixels.data.set([...INK, pixels.data[place + 3] > 127 ? 0 : 255], place);
    pen.putImageData(pixels, 0, 0);
  };
  find("clear").onclick = () => {
    keep();
    pen.clearRect(...area);
    for (const side of Object.keys(added)) added[side] = 0;
    fit();
  };
  find("use-mask").onclick = () => {
    setForm({ mask: maskOf(canvas, pen.getImageData(...area)), extend: Object.values(added).some(Boolean) ? added : null, blur, forget });
    dialog.addEventListener("close", openCompose, { once: true });
  };
  dialog.onkeydown = (event) => {
    const step = { "[": 0.8, "]": 1.25 }[event.key];
    if (step) brush.value = Math.max(brush.value * step, 4);
    if (event.key === "z" && (event.ctrlKey || event.metaKey)) find("undo").click();
    if (event.key === "e") find("eraser").click();
  };
  dialog.showModal();
  const watcher = new ResizeObserver(fit);
  watcher.observe(board);
  dialog.onclose = () => watcher.disconnect();
}

// What is opaque is generated anew; nothing drawn is no mask.
function maskOf(canvas, { data }) {
  const any = data.some((value, place) => place % 4 === 3 && value > 127);
  return any ? canvas.toDataURL("image/png").split(",")[1] : null;
}
