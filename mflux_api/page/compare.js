// Before and after, with a handle between them.

import { h } from "./dom.js";

export function openCompare(before, after) {
  const top = h("img", { class: "after", src: after, alt: "After" });
  const handle = h("input", { type: "range", min: 0, max: 100, value: 50, class: "handle", "aria-label": "Where after begins", oninput: (event) => show(event.target.value) });
  const show = (value) => box.style.setProperty("--at", `${value}%`);
  const box = h("div", { class: "layers comparing" }, h("img", { src: before, alt: "Before" }), top, handle);
  const dialog = h("dialog", { class: "over", "aria-label": "Compare" }, h("div", { class: "sheet" }, box),
    h("div", { class: "row tools" }, h("span", { class: "grow quiet" }, "Left: before. Right: after."), h("button", { class: "chip", onclick: () => dialog.close() }, "Close")));
  show(50);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
