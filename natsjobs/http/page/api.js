// Requests to the gateway this page came from, under whatever prefix it is mounted.

const BASE = new URL("./", document.baseURI);
const KEY = "natsjobs-token";

export class Refused extends Error {
  constructor(status, code, message, fields = {}) {
    super(message);
    Object.assign(this, { status, code, fields });
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** A browser takes these for steps in the path, encoded or not. */
export const unreachable = (id) => id === "." || id === "..";

export const streamPath = (id, rest = "") => `streams/${encodeURIComponent(id)}${rest}`;

export function request(path, { headers = {}, ...options } = {}) {
  const given = token.get();
  return fetch(new URL(path, BASE), {
    cache: "no-store",
    ...options,
    headers: { ...(given ? { Authorization: `Bearer ${given}` } : {}), ...headers },
  });
}

export async function refusal(response) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    // A proxy in between answers in its own words.
  }
  const message = typeof body.message === "string" ? body.message : `the answer was ${response.status}`;
  return new Refused(response.status, body.error ?? "", message, body);
}

export async function json(path, options = {}) {
  const signals = [AbortSignal.timeout(20_000), ...(options.signal ? [options.signal] : [])];
  const response = await request(path, { ...options, signal: AbortSignal.any(signals) });
  if (!response.ok) throw await refusal(response);
  return response.json();
}
