// The service: requests, problems, the token, a connection that comes and goes, events, files.

import { signal } from "./dom.js";

const ROOT = new URL("v1/", document.baseURI);
const TOKEN = "maisi-token";
const WAITS = [1000, 2000, 4000, 8000];

/** What the service refused, as it said it (RFC 9457). */
export class Problem extends Error {
  constructor(status, body, retryAfter) {
    super(body.detail || body.title || `The service answered ${status}`);
    this.status = status;
    this.title = body.title || "";
    this.accepted = body.accepted;
    this.errors = body.errors || [];
    this.retryAfter = retryAfter;
  }
}

/** The service did not answer. */
export class Unreachable extends Error {}

export const connection = signal({ lost: false, nextTry: 0 });
let asker = async () => null;
let asking = null;
let declined = false;
let trying = null;

/** Who asks people for a token: a function that promises one, or null. */
export function onTokenWanted(ask) {
  asker = ask;
}

export const token = () => sessionStorage.getItem(TOKEN);

/** Ask for a token again, although it was not given the last time. */
export function askAgain() {
  declined = false;
}

function wantToken(refused) {
  if (declined) return Promise.resolve(null);
  asking ??= asker(refused).then((given) => {
    asking = null;
    declined = !given;
    if (given) sessionStorage.setItem(TOKEN, given);
    return given;
  });
  return asking;
}

/** A `Response` that is fine; asks for a token where one is missing. Raises `Problem` or `Unreachable`. */
export async function call(path, options = {}) {
  const { method = "GET", json, body, headers = {}, signal: stop } = options;
  const sent = token();
  const response = await reach(new URL(path, ROOT), {
    method,
    signal: stop,
    body: json === undefined ? body : JSON.stringify(json),
    headers: {
      ...(json !== undefined && { "Content-Type": "application/json" }),
      ...(sent && { Authorization: `Bearer ${sent}` }),
      ...headers,
    },
  });
  if (response.status === 401 && (token() !== sent || (await wantToken(sent !== null)))) return call(path, options);
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function reach(url, options) {
  try {
    const response = await fetch(url, { cache: "no-store", credentials: "omit", ...options });
    if (connection.get().lost) connection.set({ lost: false, nextTry: 0 });
    return response;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    back();
    throw new Unreachable("The service does not answer");
  }
}

async function problemOf(response) {
  const text = await response.text();
  let body = { title: response.statusText };
  try {
    body = JSON.parse(text);
    if (typeof body.detail !== "string") body = { title: body.title || response.statusText };
  } catch {
    body = { title: response.statusText, detail: text.slice(0, 300) };
  }
  return new Problem(response.status, body, Number(response.headers.get("Retry-After")) || null);
}

/** Until the service answers again. */
export function back() {
  trying ??= knock().finally(() => (trying = null));
  return trying;
}

async function knock() {
  for (let tries = 0; ; tries++) {
    const wait = WAITS[Math.min(tries, WAITS.length - 1)];
    connection.set({ lost: true, nextTry: Date.now() + wait });
    await pause(wait);
    try {
      const response = await fetch(new URL("health/live", ROOT), { cache: "no-store" });
      if (response.ok) return connection.set({ lost: false, nextTry: 0 });
    } catch {
      continue;
    }
  }
}

export const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
export const get = async (path, options) => (await call(path, options)).json();
export const post = async (path, json, headers) => (await call(path, { method: "POST", json, headers })).json();
export const remove = (path) => call(path, { method: "DELETE" });

/** Follow server-sent events until `end`; a broken stream is taken up where it broke. `EventSource` can send no token. */
export async function follow(path, heard, stop) {
  let last = "";
  while (!stop.aborted) {
    try {
      const headers = { Accept: "text/event-stream", ...(last && { "Last-Event-ID": last }) };
      const response = await call(path, { headers, signal: stop });
      for await (const event of parsed(response.body)) {
        last = event.id || last;
        heard(event.type, event.data);
        if (event.type === "end") return;
      }
    } catch (error) {
      if (stop.aborted) return;
      if (error instanceof Problem) throw error;
      await back();
      continue;
    }
    await pause(WAITS[0]); // the stream ended without its end: the service stopped
  }
}

async function* parsed(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text = (text + value).replaceAll("\r\n", "\n");
      for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
        const event = eventOf(text.slice(0, end));
        text = text.slice(end + 2);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops listening closes the stream
  }
}

function eventOf(block) {
  const fields = { event: "message", id: "", data: [] };
  for (const line of block.split("\n")) {
    const [, name, value] = /^([a-z]+): ?(.*)$/.exec(line) || [];
    if (name === "data") fields.data.push(value);
    else if (name) fields[name] = value;
  }
  return fields.data.length ? { type: fields.event, id: fields.id, data: JSON.parse(fields.data.join("\n")) } : null;
}

/** The bytes of a file; `told(share)` hears how much is there. */
export async function fetchBytes(path, told = () => {}) {
  const response = await call(path);
  const total = Number(response.headers.get("Content-Length")) || 0;
  const reader = response.body.getReader();
  const pieces = [];
  let got = 0;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    pieces.push(value);
    got += value.length;
    if (total) told(Math.min(1, got / total));
  }
  return new Blob(pieces).arrayBuffer();
}

/** Save a file under a name; by way of memory, as a link can send no token. */
export async function download(path, name) {
  const url = URL.createObjectURL(await (await call(path)).blob());
  const link = document.createElement("a");
  Object.assign(link, { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
