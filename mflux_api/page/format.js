// Numbers and states in words.

export function seconds(value) {
  if (!Number.isFinite(value)) return "";
  if (value < 1) return "a moment";
  if (value < 90) return `${Math.round(value)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  return `${(value / 3600).toFixed(1)} h`;
}

export function bytes(value) {
  if (value >= 1e9) return `${(value / 1e9).toFixed(1)} GB`;
  if (value >= 1e6) return `${Math.round(value / 1e6)} MB`;
  return `${Math.max(1, Math.round(value / 1e3))} KB`;
}

const STAGES = {
  queued: "Waiting",
  downloading: "Downloading the model",
  loading: "Loading the model",
  encoding: "Reading the prompt",
  compiling: "Compiling, once for this size",
  denoising: "Generating",
  decoding: "Decoding",
  saving: "Saving",
};

export function stage(job) {
  if (job.status === "queued" && job.position) return job.position > 1 ? `Waiting behind ${job.position} more` : "Next in line";
  let text = STAGES[job.stage] ?? "Waiting";
  if (job.stage === "denoising" && job.steps) text += `, step ${job.step} of ${job.steps}`;
  if (job.images > 1 && job.stage === "denoising") text += `, image ${job.image + 1} of ${job.images}`;
  if (job.bytes_total) text += `, ${bytes(job.bytes_done)} of ${bytes(job.bytes_total)}`;
  const left = seconds(job.eta_seconds);
  return left ? `${text}, ${left} left` : text;
}

export function facts(job, seed) {
  const asked = job.request ?? {};
  const took = job.started_at && job.completed_at ? (Date.parse(job.completed_at) - Date.parse(job.started_at)) / 1000 : null;
  const parts = [
    job.model,
    seed === undefined ? null : `seed ${seed}`,
    asked.steps ? `${asked.steps} steps` : null,
    asked.width ? `${asked.width} × ${asked.height}` : null,
    took === null ? null : seconds(Math.max(took, 1)),
    ...(asked.lora_files ?? []).map((name, index) => `${name} ${asked.lora_scales[index]}`),
  ];
  return parts.filter(Boolean).join(" · ");
}
