// The server's public API. Addresses are relative: the page may lie below a path of its host.

export class ApiError extends Error {
  constructor(status, body) {
    super(body?.error ?? `The server answered ${status}`);
    this.status = status;
    this.code = body?.code ?? "";
    this.field = body?.details?.field ?? "";
    this.details = body?.details ?? {};
  }
}

export async function ask(method, path, body, headers = {}) {
  const options = {
    method, body: body && JSON.stringify(body),
    // The last one, or the browser would ask for a name and a password of its own.
    headers: { Accept: "application/json", "Content-Type": "application/json", "X-Requested-With": "XMLHttpRequest", ...headers },
  };
  let answer;
  try {
    answer = await fetch(`api/v1/${path}`, options);
  } catch {
    throw new ApiError(0, { error: "The server does not answer, so this was not sent: try again when it is back", code: "OFFLINE" });
  }
  const found = await answer.json().catch(() => null);
  if (!answer.ok) throw new ApiError(answer.status, found);
  return found;
}

export const get = (path) => ask("GET", path);
export const post = (path, body) => ask("POST", path, body);

export const imagePath = (id, index, parameters = "") => `api/v1/jobs/${id}/images/${index}${parameters && `?${parameters}`}`;

export const toBase64 = (blob) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.split(",")[1]);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(blob);
});

export async function fetchImage(id, index) {
  const answer = await fetch(imagePath(id, index));
  if (!answer.ok) throw new ApiError(answer.status, await answer.json().catch(() => null));
  return answer.blob();
}
