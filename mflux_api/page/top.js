// The top bar: engines, the connection, the theme and the key.

import { ask } from "./api.js";
import { loadAll } from "./app.js";
import { chip, h, icon, render } from "./dom.js";
import { openModels } from "./models.js";
import { listen, state, update } from "./store.js";

const LIVE = { connecting: "Connecting", live: "Live", reconnecting: "Reconnecting", key: "Needs a key" };
const THEMES = ["auto", "light", "dark"];

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("mflux-theme", theme);
}

function engineChip(engine) {
  const busy = engine.loading ? `loading ${engine.loading}` : engine.models[0] ?? "no model in memory";
  const text = engine.status === "ready" ? busy : engine.problem ?? engine.status;
  const memory = engine.memory_gb ? `, ${engine.memory_gb.toFixed(1)} GB` : "";
  return h("li", { class: `chip engine ${engine.status}`, title: `${engine.device ?? "engine"} · ${text}${memory}` },
    h("b", engine.backend?.toUpperCase() ?? "Engine"), ` ${text}${memory}`);
}

function keyDialog() {
  const field = h("input", { type: "password", id: "key", autocomplete: "current-password", required: true });
  const wrong = h("p.wrong", { role: "alert" });
  const enter = async (event) => {
    event.preventDefault();
    try {
      await ask("POST", "session", undefined, { Authorization: `Bearer ${field.value}` });
      update({ needsKey: false });
      loadAll();
    } catch (error) {
      wrong.textContent = error.message;
      field.select();
    }
  };
  return h("form.key", { onsubmit: enter },
    h("label", { for: "key" }, "This server asks for an API key"),
    h("div.row", field, h("button.main", "Enter")),
    wrong,
    h("p.quiet", "It is kept as a cookie that scripts cannot read, for 30 days."));
}

async function leave() {
  await ask("DELETE", "session").catch(() => {});
  location.reload();
}

export function startTop() {
  const top = document.getElementById("top");
  setTheme(localStorage.getItem("mflux-theme") ?? "auto");
  const live = h("span.live", { role: "status" });
  const engines = h("ul.chips", { label: "Engines" });
  const key = h("div.keyplace");
  const theme = h("button.plainbutton", { label: "Change the theme", title: "Theme",
    onclick: () => setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]),
  }, icon("theme"));
  const out = h("button.plainbutton", { label: "Leave: forget the key", title: "Leave", onclick: leave }, icon("key"));
  const models = chip("Models", openModels);
  top.append(engines, live, models, theme, out);
  document.querySelector(".room").before(key);
  listen((now) => {
    live.textContent = LIVE[now.live];
    live.dataset.state = now.live;
    out.hidden = !now.keyed;
    render(engines, now.system?.engines ?? [], () => (now.system?.engines ?? []).map(engineChip));
    render(key, now.needsKey, () => (now.needsKey ? keyDialog() : null));
    if (now.needsKey) key.querySelector("input")?.focus();
  });
}
