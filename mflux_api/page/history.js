// All jobs, newest first: those under way on top with their progress, the others as thumbnails.

import { fetchImage, imagePath } from "./api.js";
import { cancel, search, show } from "./app.js";
import { addFiles } from "./compose.js";
import { chip, find, h, icon, isFree, render } from "./dom.js";
import { stage } from "./format.js";
import { listen, running, state, update } from "./store.js";
import { zip } from "./zip.js";

const FILTERS = [["edit", "true", "Edits"], ["status", "failed", "Failed"]];

function busyRow(job) {
  const bar = h("progress", { max: 1, label: `Progress of ${job.prompt}` });
  bar.value = job.progress ?? 0;
  return h("li.busy",
    h("button.plainbutton.grow", { onclick: () => show(job.id) },
      h("span.said", job.prompt || "…"), bar, h("span.quiet", stage(job))),
    h("button.plainbutton", { label: `Cancel: ${job.prompt}`, onclick: () => cancel(job.id) }, icon("close")));
}

let last = null;

// With shift everything between, as in a list of files.
function pick(id, between) {
  const picked = new Set(state.picked);
  const places = [state.found.indexOf(last), state.found.indexOf(id)].sort((one, other) => one - other);
  if (between && places[0] >= 0) for (const each of state.found.slice(places[0], places[1] + 1)) picked.add(each);
  else if (!picked.delete(id)) picked.add(id);
  last = id;
  update({ picked });
}

const pickedJobs = () => state.found.map((id) => state.jobs.get(id)).filter((job) => state.picked?.has(job.id) && job.status === "completed");

// The images of the selected jobs as files; what is gone from the disk is left out.
async function files(tell, most = Infinity) {
  const found = [];
  const jobs = pickedJobs();
  for (const [place, job] of jobs.entries()) {
    tell(`${place + 1} of ${jobs.length}`);
    const name = [...job.prompt.replace(/[\\/:*?"<>|\p{C}]+/gu, " ").trim()].slice(0, 60).join("");
    for (let index = 0; index < (job.result?.images?.length ?? job.request.num_images ?? 1) && found.length < most; index += 1) {
      const blob = await fetchImage(job.id, index).catch((error) => update({ notice: error.message }));
      if (blob) found.push({ name: `${name} ${job.id}-${index}.png`, blob, date: new Date(job.completed_at) });
    }
  }
  return found;
}

async function download(event) {
  const button = event.target;
  button.disabled = true;
  try {
    const url = URL.createObjectURL(await zip(await files((text) => { button.textContent = text; })));
    h("a", { href: url, download: "images.zip" }).click();
    setTimeout(URL.revokeObjectURL, 60000, url);
  } catch (error) {
    update({ notice: error.message });
  }
  button.textContent = "Download zip";
  button.disabled = false;
}

async function refer() {
  const found = await files(() => {}, 4);
  update({ picked: null });
  await addFiles(found.map(({ name, blob }) => new File([blob], name, { type: blob.type })));
}

function tile(job) {
  const [width, height] = [job.request?.width ?? 1, job.request?.height ?? 1];
  const button = h("button.tile", { title: job.prompt, label: job.status === "completed" ? job.prompt || job.id : `${job.status}: ${job.prompt || job.id}`, onclick: (event) => (state.picked || event.ctrlKey || event.metaKey || event.shiftKey ? pick(job.id, event.shiftKey) : show(job.id)) },
    job.status === "completed"
      ? h("img", { src: imagePath(job.id, 0, "size=256&format=webp"), alt: "", loading: "lazy", width, height, onerror: (event) => event.target.replaceWith("gone") })
      : h("span", { class: `none ${job.status}` }, job.status));
  const place = h("li", button);
  place.style.setProperty("--ratio", Math.min(2.4, Math.max(0.5, width / height)));
  return place;
}

export function startHistory() {
  const [box, filters, kinds, picks, busy, tiles, end] = ["search", "filters", "kinds", "picks", "busy", "tiles", "end"].map(find);
  let typing = 0;
  box.oninput = () => {
    clearTimeout(typing);
    typing = setTimeout(() => { state.search.q = box.value.trim(); search(); }, 250);
  };
  find("select").onclick = () => update({ picked: state.picked ? null : new Set() });
  kinds.onchange = () => {
    const [kind, name] = kinds.value.split(/:(.*)/);
    Object.assign(state.search, { model: "", lora: "" }, kind && { [kind]: name });
    search();
  };
  document.addEventListener("keydown", (event) => {
    if (!isFree()) return;
    if (event.key === "Escape" && state.picked) update({ picked: null });
    if (event.key === "/") {
      event.preventDefault();
      box.focus();
    }
  });
  const watcher = new IntersectionObserver((entries) => {
    if (entries.at(-1).isIntersecting && state.cursor) search(true);
  }, { rootMargin: "600px", scrollMargin: "600px" });

  let cursor = null;
  let marked = false;
  const made = new Map();
  listen((now) => {
    const active = [...now.jobs.values()].filter(running).sort((one, other) => (one.created_at < other.created_at ? -1 : 1));
    render(busy, active.map((job) => [job.id, job.prompt, job.progress, stage(job)]), () => active.map(busyRow));
    render(filters, now.search, () => [
      ...FILTERS.map(([name, value, label]) => {
        const on = now.search[name] === value;
        return chip(label, () => { now.search[name] = on ? "" : value; update(); search(); }, on);
      })]);
    find("select").ariaPressed = Boolean(now.picked);
    const count = pickedJobs().length;
    render(picks, now.picked && count, () => now.picked && [
      h("p.grow", { role: "status" }, count ? `${count} selected` : "Choose images"),
      count ? [chip("As references", refer), chip("Download zip", download)] : chip("All", () => update({ picked: new Set(state.found) }))]);
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
    for (const job of now.picked || marked ? finished : []) {
      const button = made.get(`${job.id} ${job.status}`).firstChild;
      if (now.picked && job.status === "completed") button.setAttribute("aria-pressed", now.picked.has(job.id));
      else button.removeAttribute("aria-pressed");
    }
    marked = Boolean(now.picked);
    for (const button of tiles.querySelectorAll(".tile.on")) button.classList.remove("on");
    const shown = finished.find((job) => job.id === now.shown);
    if (shown) made.get(`${shown.id} ${shown.status}`).firstChild.classList.add("on");
  });
}
