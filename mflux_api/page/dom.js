// Elements from values: h("button.wide", { onclick: send }, "Generate").

export function h(tag, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  const properties = Object.getPrototypeOf(children[0] ?? 0) === Object.prototype ? children.shift() : {};
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "value" || key === "checked" || key === "disabled") element[key] = value;
    else if (key === "data") Object.assign(element.dataset, value);
    else element.setAttribute(key === "label" ? "aria-label" : key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const SHAPES = {
  die: "M4 4h16v16H4zM8.5 8.5h.01M15.5 15.5h.01M12 12h.01",
  lock: "M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 0 1 7 0v3",
  close: "M6 6l12 12M18 6L6 18",
  add: "M12 5v14M5 12h14",
  save: "M12 4v11M7 11l5 5 5-5M5 20h14",
  again: "M20 12a8 8 0 1 1-2.5-5.8M20 3v5h-5",
  vary: "M4 8c4-5 12 13 16 8M4 16c4 5 12-13 16-8",
  edit: "M4 20l1-5L16 4l4 4L9 19z",
  brush: "M14 4l6 6-8 6-4-4zM8 12c-4 0-2 5-5 7 4 1 8 0 8-4",
  larger: "M4 14v6h6M20 10V4h-6M4 20l7-7M20 4l-7 7",
  compare: "M12 3v18M5 7h4v10H5zM15 7h4v10h-4",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  theme: "M12 3a9 9 0 1 0 9 9 7 7 0 0 1-9-9z",
  key: "M14 10a4 4 0 1 0-3.4 3.9L13 16h2v2h2v2h3v-3l-6.2-6.2",
  down: "M6 9l6 6 6-6",
  search: "M11 4a7 7 0 1 1 0 14 7 7 0 0 1 0-14zM16 16l4 4",
};

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", SHAPES[name]);
  svg.append(path);
  return svg;
}

export function say(text) {
  const place = document.getElementById("said");
  if (place.textContent !== text) place.textContent = text;
}

// A button; one that is on or off says which it is.
export const chip = (text, onclick, on, more) => h("button.chip", { onclick, "aria-pressed": on === undefined ? null : String(on), ...more }, text);

// A dialog that leaves the document when it is closed.
export function openDialog(label, kind, ...children) {
  const dialog = h(`dialog.over.${kind}`, { label, onclose: () => dialog.remove() }, ...children);
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

// Replaces what is in an element, unless it says the same as before: focus and scrolling stay.
const rendered = new WeakMap();
export function render(element, key, make) {
  const text = JSON.stringify(key);
  if (rendered.get(element) === text) return;
  rendered.set(element, text);
  element.replaceChildren(...[make()].flat(Infinity).filter(Boolean));
}
