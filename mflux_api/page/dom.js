// Elements from values: h("button.wide", { onclick: send }, "Generate").

export function h(tag, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  const properties = Object.getPrototypeOf(children[0] ?? 0) === Object.prototype ? children.shift() : {};
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "value" || key === "disabled") element[key] = value;
    else element.setAttribute(key === "label" ? "aria-label" : key, value === true ? "" : value);
  }
  element.append(...some(children));
  return element;
}

const some = (children) => children.flat(Infinity).filter((child) => child || child === 0);

export const find = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

// One of the shapes in index.html.
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(SVG, "use"));
  svg.firstChild.setAttribute("href", `#i-${name}`);
  return svg;
}

export function say(text) {
  const place = find("said");
  if (place.textContent !== text) place.textContent = text;
}

// A button; one that is on or off says which it is.
export const chip = (text, onclick, on, more) => h("button.chip", { onclick, "aria-pressed": on === undefined ? null : String(on), ...more }, text);

// A key of its own means something here: no field and no dialog has it.
export const isFree = () => !/INPUT|TEXTAREA|SELECT/.test(document.activeElement?.tagName ?? "") && !document.querySelector("dialog[open]");

// Replaces what is in an element, unless it says the same as before: focus and scrolling stay.
const rendered = new WeakMap();
const controls = (element) => [...element.querySelectorAll("button, a, input")];
export function render(element, key, make) {
  const text = JSON.stringify(key);
  if (rendered.get(element) === text) return;
  rendered.set(element, text);
  const focused = controls(element).indexOf(document.activeElement);
  element.replaceChildren(...some([make()]));
  controls(element)[focused]?.focus();
}
