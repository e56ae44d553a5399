// Jobs as the service has them, and what lies in their folders.

import { call, connection, follow, get, pause, post, remove, back, Unreachable } from "./api.js";
import { signal } from "./dom.js";

export const jobs = signal([]);
export const isActive = (job) => job.state === "queued" || job.state === "running";

const EVERY = { active: 2500, idle: 15000 };
let wake = () => {};

/** Look again now. */
export async function refresh() {
  jobs.set((await get("jobs?limit=100")).jobs);
}

/** Keep the list fresh while the page is seen. */
export async function keepFresh() {
  connection.watch(({ lost }) => lost || wake());
  document.addEventListener("visibilitychange", () => document.hidden || wake());
  for (;;) {
    if (!document.hidden && !connection.get().lost) await refresh().catch(() => {});
    const wait = jobs.get().some(isActive) ? EVERY.active : EVERY.idle;
    await Promise.race([pause(wait), new Promise((resolve) => (wake = resolve))]);
  }
}

/** Put a job into the queue exactly once, also where the answer was lost. */
export async function submit(kind, request) {
  const headers = { "Idempotency-Key": crypto.randomUUID?.() ?? String(Math.random()).slice(2) };
  for (;;) {
    try {
      const job = await post("jobs", { kind, request }, headers);
      put(job);
      return job;
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error;
      await back();
    }
  }
}

/** Cancel what runs or waits; of what is done remove the files. */
export async function end(job) {
  await remove(`jobs/${job.id}`);
  await refresh();
}

/** Keep one job fresh by its events until it ends; `told(job)` hears each change. */
export async function followJob(id, told, stop) {
  let job = await get(`jobs/${id}`);
  told(job);
  if (!isActive(job)) return;
  const heard = (type, data) => {
    if (type === "stage") job = { ...job, state: "running", ...data };
    if (type === "artifact") job = { ...job, artifacts: [...new Set([...job.artifacts, data.name])] };
    if (type === "end") job = data;
    if (type === "stage" || type === "artifact" || type === "end") told(job);
    if (type === "end") put(job);
  };
  await follow(`jobs/${id}/events`, heard, stop);
}

function put(job) {
  const rest = jobs.get().filter((each) => each.id !== job.id);
  jobs.set([job, ...rest].sort((a, b) => when(b) - when(a)));
}

const when = (job) => (typeof job.created === "number" ? job.created : Date.parse(job.created) / 1000);

export const listFiles = async (job) => (await get(`jobs/${job.id}/artifacts`)).artifacts;
export const fileOf = (job, name) => `jobs/${job.id}/artifacts/${name.split("/").map(encodeURIComponent).join("/")}`;
export const archiveOf = (job, format) => `jobs/${job.id}/archive?format=${format}`;
export const readJson = async (path) => (await call(path)).json();

const PARTS = /^(?<stem>.*?)_?(?<what>ct|mr|labels|mask|preview|quality|reconstruction)\.(?<ending>nii\.gz|nii|png|json)$/;

/** The samples of a job: files that belong together by the name before `_ct`. */
export function samplesOf(names) {
  const samples = new Map();
  for (const name of names) {
    const found = PARTS.exec(name)?.groups;
    if (!found) continue;
    const what = { mr: "image", ct: "image", reconstruction: "image" }[found.what] || found.what;
    samples.set(found.stem, { ...samples.get(found.stem), stem: found.stem, [what]: name });
  }
  return [...samples.values()].filter((sample) => sample.image || sample.labels).sort((a, b) => a.stem.localeCompare(b.stem));
}

/** What a job is about, in a few words. */
export function summary(job) {
  const request = job.request || {};
  const parts = {
    generate: [request.region || (request.labels ? "after a label map" : "chest"), ...listOf(request.anatomy)],
    inpaint: [request.remove ? "lesion taken out" : `${request.tumor || "lesion"}${request.diameter ? ` ${request.diameter} mm` : ""}`],
    "labels-generate": [request.region || "chest", ...listOf(request.anatomy)],
    "labels-augment": [request.add || "tumours varied"],
  }[job.kind] || [];
  const seed = request.seed === undefined ? [] : [`seed ${request.seed}`];
  return [...parts, ...(request.count > 1 ? [`${request.count} samples`] : []), ...seed].join(" · ");
}

const listOf = (anatomy) =>
  Array.isArray(anatomy) ? anatomy : Object.entries(anatomy || {}).map(([name, size]) => `${name}=${size}`);
