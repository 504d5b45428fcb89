// Before and after, with a handle between them.

import { find } from "./dom.js";

export function openCompare(before, after) {
  const dialog = find("comparing");
  const [first, second, handle] = dialog.querySelectorAll("img, input");
  first.src = before;
  second.src = after;
  handle.oninput = () => handle.parentElement.style.setProperty("--at", `${handle.value}%`);
  handle.value = 50;
  handle.oninput();
  dialog.showModal();
}
