// The list of jobs.

import { button, h, say } from "./dom.js";
import { end, isActive, summary } from "./jobs.js";
import { KINDS } from "./form/kinds.js";
import { ago, duration } from "./units.js";

const STATES = { queued: "waiting", running: "running", done: "done", failed: "failed", cancelled: "cancelled" };

/** Fill `root`; `actions` are `open(job)`, `repeat(job)`, `change(job)` and `failed(error)`. */
export function showJobs(root, jobs, current, actions) {
  if (!jobs.length) {
    root.replaceChildren(h("p.nothing", {}, "No jobs yet. What you start appears here, also after a restart of the service."));
    return;
  }
  const focused = root.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  root.replaceChildren(h("ul.jobs", { "aria-label": "Jobs" }, jobs.map((job) => item(job, job.id === current, actions))));
  if (focused) root.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

function item(job, isCurrent, actions) {
  const title = KINDS[job.kind]?.text || job.kind;
  const open = h("button.open", { type: "button", onclick: () => actions.open(job), "aria-current": isCurrent ? "true" : undefined },
    h("span.title", {}, title), h("span.summary", {}, summary(job)), status(job));
  open.dataset.key = `open-${job.id}`;
  const tools = toolsOf(job, actions).map(([picture, text, act]) => {
    const each = button(picture, text, act, { bare: true, kind: "quiet" });
    each.dataset.key = `${picture}-${job.id}`;
    return each;
  });
  const element = h(`li.job.${job.state}`, {}, open, h("div.tools", {}, tools), isActive(job) && bar(job));
  return element;
}

function status(job) {
  const left = job.state === "running" && job.seconds_left ? `, ${duration(job.seconds_left)} left` : "";
  const stage = job.state === "running" && job.stage ? ` · ${job.stage}${left}` : "";
  return h("span.status", {}, h("span.dot", {}), `${STATES[job.state]}${stage}`, h("span.when", {}, ago(job.finished || job.created)));
}

/** How far a job is. */
export function bar(job) {
  const share = job.total ? job.done / job.total : null;
  const attributes = share === null ? {} : { value: share, max: 1 };
  return h("progress", { ...attributes, "aria-label": `Progress of ${job.stage || "the job"}` });
}

function toolsOf(job, { repeat, change, failed }) {
  const doEnd = (text) => () => end(job).then(() => say(text), failed);
  if (isActive(job)) return [["stop", "Cancel", doEnd("The job is being cancelled")]];
  return [
    ["repeat", "Repeat", () => repeat(job)],
    ...(KINDS[job.kind] ? [["edit", "Change and start again", () => change(job)]] : []),
    ["trash", "Remove with its files", doEnd("The job was removed")],
  ];
}
