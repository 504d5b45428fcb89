// All jobs as tiles, newest first; those under way have their progress.

import { fetchImage, imagePath } from "./api.js";
import { cancel, search, show } from "./app.js";
import { addFiles } from "./compose.js";
import { chip, find, h, icon, isFree, render } from "./dom.js";
import { stage } from "./format.js";
import { isSearching, listen, running, state, update } from "./store.js";
import { zip } from "./zip.js";

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
    const name = [...job.prompt.replace(/[\s\\/:*?"<>|\p{C}]+/gu, " ").trim()].slice(0, 60).join("");
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
  button.textContent = "Zip";
  button.disabled = false;
}

async function refer() {
  const found = await files(() => {}, 4);
  update({ picked: null });
  await addFiles(found.map(({ name, blob }) => new File([blob], name, { type: blob.type })));
}

// On a narrow screen the image is above.
function open(id) {
  show(id);
  scrollTo(0, 0);
}

function tile(job) {
  const [width, height] = [job.request?.width ?? 1, job.request?.height ?? 1];
  const button = h("button.tile", { title: job.prompt, label: job.status === "completed" ? job.prompt || job.id : `${job.status}: ${job.prompt || job.id}`, onclick: (event) => (state.picked || event.ctrlKey || event.metaKey || event.shiftKey ? pick(job.id, event.shiftKey) : open(job.id)) },
    running(job) ? h("progress", { max: 1, label: "Progress" }) : null,
    job.status === "completed"
      ? h("img", { src: imagePath(job.id, 0, "size=256&format=webp"), alt: "", loading: "lazy", onerror: (event) => event.target.replaceWith("gone") })
      : h("span", { class: `none ${job.status}` }, job.status));
  const place = h("li", button, running(job) && h("button.corner", { label: `Cancel: ${job.prompt}`, title: "Cancel", onclick: () => cancel(job.id) }, icon("close")));
  place.style.setProperty("--ratio", Math.min(2.4, Math.max(0.5, width / height)));
  return place;
}

export function startHistory() {
  const [box, filters, kinds, picks, tiles, end] = ["search", "filters", "kinds", "picks", "tiles", "end"].map(find);
  let typing = 0;
  box.oninput = () => {
    clearTimeout(typing);
    typing = setTimeout(() => { state.search.q = box.value.trim(); search(); }, 250);
  };
  find("select").onclick = () => update({ picked: state.picked ? null : new Set() });
  for (const filter of filters.children) {
    const { name, value } = filter.dataset;
    filter.onclick = () => {
      state.search[name] = state.search[name] ? "" : value;
      search();
    };
  }
  kinds.onchange = () => {
    const [kind, name] = kinds.value.split(/:(.*)/);
    Object.assign(state.search, { model: "", lora: "" }, kind && { [kind]: name });
    search();
  };
  document.addEventListener("keydown", (event) => {
    if (!isFree()) return;
    if (event.key === "Escape") update({ picked: null, notice: "" });
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
    for (const filter of filters.children) filter.ariaPressed = Boolean(now.search[filter.dataset.name]);
    find("select").ariaPressed = Boolean(now.picked);
    const count = pickedJobs().length;
    render(picks, now.picked && count, () => now.picked && [
      h("p.grow", { role: "status" }, count ? `${count} selected` : "Choose images"),
      count ? [chip("As references", refer), chip("Zip", download, undefined, { title: "Download as a zip" })] : chip("All", () => update({ picked: new Set(state.found) }))]);
    const used = [...new Set([...now.jobs.values()].map((job) => job.model))].filter(Boolean).sort();
    const { model, lora } = now.search;
    render(kinds, [used, now.loras.map((each) => each.name), model, lora], () => [["", "All models"],
      ...used.map((name) => [`model:${name}`, name]), ...now.loras.map((each) => [`lora:${each.name}`, `LoRA ${each.name}`])].map(([value, label]) => {
      const option = h("option", { value }, label);
      option.selected = value === (model ? `model:${model}` : lora ? `lora:${lora}` : "");
      return option;
    }));
    const jobs = now.found.map((id) => now.jobs.get(id)).filter(Boolean);
    // A job has its place from the beginning: an image that is ready moves no other.
    const placeOf = (job) => made.get(`${job.id} ${running(job) ? "" : job.status}`);
    const wanted = jobs.map((job) => {
      if (!placeOf(job)) made.set(`${job.id} ${running(job) ? "" : job.status}`, tile(job));
      const place = placeOf(job);
      if (running(job)) {
        place.querySelector("progress").value = job.progress ?? 0;
        place.querySelector(".none").textContent = job.prompt;
        place.firstChild.title = place.firstChild.ariaLabel = `${job.prompt}: ${stage(job)}`;
      }
      return place;
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
    end.textContent = now.loading ? "" : wanted.length ? (now.cursor ? "" : "That is all.") : isSearching() ? "Nothing is found." : "Finished images come here.";
    for (const job of now.picked || marked ? jobs : []) {
      const button = placeOf(job).firstChild;
      if (now.picked && job.status === "completed") button.setAttribute("aria-pressed", now.picked.has(job.id));
      else button.removeAttribute("aria-pressed");
    }
    marked = Boolean(now.picked);
    for (const button of tiles.querySelectorAll(".tile.on")) button.classList.remove("on");
    const shown = jobs.find((job) => job.id === now.shown);
    if (shown) placeOf(shown).firstChild.classList.add("on");
  });
}
