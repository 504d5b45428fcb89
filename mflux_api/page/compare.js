// Before and after, with a handle between them.

import { chip, h, openDialog } from "./dom.js";

export function openCompare(before, after) {
  const show = (value) => box.style.setProperty("--at", `${value}%`);
  const handle = h("input", { type: "range", min: 0, max: 100, value: 50, class: "handle", label: "Where after begins", oninput: () => show(handle.value) });
  const box = h("div.layers.comparing", h("img", { src: before, alt: "Before" }), h("img.after", { src: after, alt: "After" }), handle);
  show(50);
  const dialog = openDialog("Compare", "compared", h("div.sheet", box),
    h("div.row.tools", h("span.grow.quiet", "Left: before. Right: after."), chip("Close", () => dialog.close())));
}
