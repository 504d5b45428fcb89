// All jobs, newest first: those under way on top with their progress, the others as thumbnails.

import { imagePath } from "./api.js";
import { cancel, search, show } from "./app.js";
import { chip, h, icon, render } from "./dom.js";
import { stage } from "./format.js";
import { listen, running, state, update } from "./store.js";

const FILTERS = [["edit", "true", "Edits"], ["status", "failed", "Failed"]];

function busyRow(job) {
  const bar = h("progress", { max: 1, label: `Progress of ${job.prompt}` });
  bar.value = job.progress ?? 0;
  return h("li.busy",
    h("button.plainbutton.grow", { onclick: () => show(job.id) }, h("span.said", job.prompt || "…"), bar, h("span.quiet", stage(job))),
    h("button.plainbutton", { label: `Cancel: ${job.prompt}`, onclick: () => cancel(job.id) }, icon("close")));
}

function tile(job) {
  const [width, height] = [job.request?.width ?? 1, job.request?.height ?? 1];
  const button = h("button.tile", { title: job.prompt, label: job.status === "completed" ? job.prompt || job.id : `${job.status}: ${job.prompt || job.id}`, onclick: () => show(job.id) },
    job.status === "completed"
      ? h("img", { src: imagePath(job.id, 0, "size=256&format=webp"), alt: "", loading: "lazy", width, height, onerror: (event) => event.target.replaceWith("gone") })
      : h("span", { class: `none ${job.status}` }, job.status));
  button.style.setProperty("--ratio", Math.min(2.4, Math.max(0.42, width / height)));
  return h("li", button);
}

export function startHistory() {
  const place = document.getElementById("history");
  let typing = 0;
  const box = h("input", { type: "search", placeholder: "Search prompts  /", label: "Search prompts", oninput: (event) => {
    clearTimeout(typing);
    typing = setTimeout(() => { state.search.q = event.target.value.trim(); search(); }, 250);
  } });
  const filters = h("div.chips", { role: "group", label: "Only" });
  const kinds = h("select", { label: "Only of a model or a LoRA", onchange: () => {
    const [kind, name] = kinds.value.split(/:(.*)/);
    Object.assign(state.search, { model: "", lora: "" }, kind && { [kind]: name });
    search();
  } });
  const busy = h("ul.busylist", { label: "Under way" });
  const tiles = h("ul.tiles", { label: "Images" });
  const end = h("p.quiet.end");
  place.append(h("div.row.searchrow", box), h("div.row.narrow", filters, kinds), busy, tiles, end);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/INPUT|TEXTAREA|SELECT/.test(document.activeElement?.tagName ?? "")) {
      event.preventDefault();
      box.focus();
    }
  });
  const watcher = new IntersectionObserver((entries) => {
    if (entries.at(-1).isIntersecting && state.cursor) search(true);
  }, { rootMargin: "600px", scrollMargin: "600px" });

  let cursor = null;
  const made = new Map();
  listen((now) => {
    const active = [...now.jobs.values()].filter(running).sort((one, other) => (one.created_at < other.created_at ? -1 : 1));
    render(busy, active.map((job) => [job.id, job.prompt, job.progress, stage(job)]), () => active.map(busyRow));
    render(filters, now.search, () => [
      ...FILTERS.map(([name, value, label]) => {
        const on = now.search[name] === value;
        return chip(label, () => { now.search[name] = on ? "" : value; update(); search(); }, on);
      })]);
    const used = [...new Set([...now.jobs.values()].map((job) => job.model))].filter(Boolean).sort();
    const { model, lora } = now.search;
    render(kinds, [used, now.loras.map((each) => each.name), model, lora], () => [["", "All models"],
      ...used.map((name) => [`model:${name}`, name]), ...now.loras.map((each) => [`lora:${each.name}`, `LoRA ${each.name}`])].map(([value, label]) => {
      const option = h("option", { value }, label);
      option.selected = value === (model ? `model:${model}` : lora ? `lora:${lora}` : "");
      return option;
    }));
    const finished = now.found.map((id) => now.jobs.get(id)).filter((job) => job && !running(job));
    const wanted = finished.map((job) => {
      const key = `${job.id} ${job.status}`;
      if (!made.has(key)) made.set(key, tile(job));
      return made.get(key);
    });
    // What stays in its place is not touched: one image more must not lay out a thousand anew.
    const kept = new Set(wanted);
    for (const each of [...tiles.children]) if (!kept.has(each)) each.remove();
    wanted.forEach((each, index) => { if (tiles.children[index] !== each) tiles.insertBefore(each, tiles.children[index] ?? null); });
    if (cursor !== now.cursor) {
      // An observer tells of changes alone: after a short page the end is in sight as it was before.
      cursor = now.cursor;
      watcher.unobserve(end);
      watcher.observe(end);
    }
    const searched = Object.values(now.search).some(Boolean);
    end.textContent = now.loading ? "Loading…" : wanted.length ? (now.cursor ? "" : "That is all.") : searched ? "Nothing is found." : "Finished images come here.";
    for (const button of tiles.querySelectorAll(".tile.on")) button.classList.remove("on");
    const shown = finished.find((job) => job.id === now.shown);
    if (shown) made.get(`${shown.id} ${shown.status}`).firstChild.classList.add("on");
  });
}
