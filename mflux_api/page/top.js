// The top bar: engines, the connection, the theme and the key; and what has to be told at once.

import { ask } from "./api.js";
import { loadAll } from "./app.js";
import { find, h, render } from "./dom.js";
import { openModels } from "./models.js";
import { listen, state, update } from "./store.js";

const LIVE = { connecting: "Connecting", live: "Live", key: "Needs a key" };
const THEMES = ["auto", "light", "dark"];
const TROUBLES = { starting: "The engine crashed and starts again", degraded: "The engine keeps crashing and starts again", failed: "The engine does not start, and is tried again after a while" };

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("mflux-theme", theme);
  find("theme").title = `Theme: ${theme}`;
}

function engineChip(engine) {
  const busy = engine.loading ? `loading ${engine.loading}` : engine.models[0] ?? "no model in memory";
  const text = engine.status === "ready" ? busy : engine.status;
  const memory = engine.memory_gb ? `${engine.memory_gb.toFixed(1)} GB` : "";
  const total = engine.device_memory_gb;
  const bar = memory && total && h("progress.memory", { max: total, value: engine.memory_gb, label: `Memory: ${memory} of ${Math.round(total)} GB` });
  return h(`li.chip.engine.${engine.status}`, { title: [engine.device, engine.problem, ...engine.models].filter(Boolean).join(" · ") },
    h("b", engine.backend?.toUpperCase() ?? "Engine"), h("span.enginetext", text), memory && h("span.quiet", memory), bar);
}

// What stands in the way of new images, in a sentence.
function trouble(now) {
  if (now.live === "reconnecting") return "The server is away. Nothing is lost: this page goes on when it is back.";
  const engines = now.system?.engines ?? [];
  const [{ status, problem } = {}] = engines;
  if (engines.length && !engines.some((engine) => engine.status === "ready") && (problem || status !== "starting")) return `${TROUBLES[status]}${problem ? `: ${problem}` : ""}`;
  return now.system?.problem ?? "";
}

async function enter(event) {
  event.preventDefault();
  const [field, , wrong] = event.target.querySelectorAll("input, button, .wrong");
  try {
    await ask("POST", "session", undefined, { Authorization: `Bearer ${field.value}` });
    update({ needsKey: false });
    loadAll();
  } catch (error) {
    wrong.textContent = error.message;
    field.select();
  }
}

export function startTop() {
  setTheme(localStorage.getItem("mflux-theme") ?? "auto");
  find("theme").onclick = () => setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]);
  find("leave").onclick = async () => {
    await ask("DELETE", "session").catch(() => {});
    location.reload();
  };
  find("open-models").onclick = openModels;
  const [banner, live, toast] = ["banner", "live", "toast"].map(find);
  const form = find("key-form");
  form.onsubmit = enter;
  toast.lastChild.onclick = () => update({ notice: "" });
  listen((now) => {
    const text = LIVE[now.live] ?? (now.retry ? `Reconnecting in ${now.retry} s` : "Reconnecting");
    if (live.textContent !== text) live.textContent = text;
    live.dataset.state = now.live;
    find("leave").hidden = !now.keyed;
    const sentence = trouble(now);
    banner.hidden = !sentence;
    if (banner.textContent !== sentence) banner.textContent = sentence;
    toast.hidden = !now.notice;
    if (toast.firstChild.textContent !== now.notice) {
      // Outside of a dialog that is open it could not be read or closed.
      [document.body, ...document.querySelectorAll("dialog[open]")].at(-1).append(toast);
      toast.firstChild.textContent = now.notice;
    }
    render(find("engines"), [now.system?.engines], () => (now.system?.engines ?? []).map(engineChip));
    if (form.hidden === now.needsKey) {
      form.hidden = !now.needsKey;
      if (now.needsKey) find("key").focus();
    }
  });
}
