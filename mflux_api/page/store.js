// One state, and who is told when it changes. Views are functions of it.

const kept = JSON.parse(localStorage.getItem("mflux-form") ?? "{}");

export const state = {
  live: "connecting",
  retry: 0, // Seconds until the next attempt to reach the server.
  needsKey: false,
  keyed: false,
  models: [],
  diskFree: null, // Gigabytes, where models are downloaded to.
  defaultModel: "",
  loras: [],
  system: null,
  statuses: {}, // Of models that are downloaded or were, by name.
  manage: null, // The model that is being managed: {title, problem, busy}.
  jobs: new Map(),
  sources: new Map(), // The first image that a job was sent with from here, by its id.
  found: [],
  cursor: null,
  loading: false,
  search: { q: "", model: "", lora: "", edit: "", status: "" },
  shown: null,
  preview: null,
  chosen: 0,
  errors: {},
  notice: "",
  sending: 0,
  picked: null, // Ids of the jobs that are selected; null where none can be.
  form: {
    prompt: "", negative_prompt: "", model: "", width: 512, height: 512, steps: null, guidance: null, seed: null,
    num_images: 1, loras: [], strength: 0.75, blur: 4, forget: false, ...kept, images: [], mask: null, extend: null,
  },
};

const listeners = new Set();
let due = false;

export function listen(listener) {
  listeners.add(listener);
  listener(state);
  return () => listeners.delete(listener);
}

export function update(changes = {}) {
  Object.assign(state, changes);
  if (due) return;
  due = true;
  queueMicrotask(() => {
    due = false;
    for (const listener of listeners) listener(state);
  });
}

export function setForm(changes) {
  Object.assign(state.form, changes);
  const { images, mask, extend, ...plain } = state.form;
  localStorage.setItem("mflux-form", JSON.stringify(plain));
  for (const name of Object.keys(changes)) delete state.errors[name];
  update();
}

export function putJob(job) {
  const before = state.jobs.get(job.id);
  // The answer to a request may come after the events of its job: an end stays an end.
  if (before && !running(before) && running(job)) return;
  state.jobs.set(job.id, { ...before, ...job });
  if (!before && !isSearching() && !state.found.includes(job.id)) state.found.unshift(job.id);
  update();
}

export const model = () => state.models.find((each) => each.title === (state.form.model || state.defaultModel));
export const masked = (form) => Boolean(form.images.length && (form.mask || form.extend));
export const isUpscaler = (each) => each.config.base_arch === "seedvr2";
export const isSearching = () => Object.values(state.search).some(Boolean);
export const running = (job) => job.status === "queued" || job.status === "generating";
