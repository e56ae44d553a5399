// The middle of the page: nothing yet, a job under way, a failure, or a result in the viewer with all that belongs to it.

import { button, h, icon } from "./dom.js";
import { bar } from "./jobs-list.js";
import { end, fileOf, followJob, isActive, jobs, listFiles, readJson, samplesOf, summary } from "./jobs.js";
import { showFacts, showFiles } from "./inspector.js";
import { KINDS } from "./form/kinds.js";
import { duration } from "./units.js";
import { known, volumeOf } from "./uploads.js";
import { showLegend } from "./viewer/legend.js";
import { showQuality } from "./viewer/quality.js";
import { Stage } from "./viewer/stage.js";

const $ = (id) => document.getElementById(id);

export class Picture {
  constructor(stage, inspector, actions) {
    this.inspector = inspector;
    this.actions = actions;
    this.card = h("div.card-place", {});
    this.samples = h("div.samples", { role: "group", "aria-label": "Samples", hidden: true });
    stage.replaceChildren(this.card, this.samples);
    this.stage = new Stage(stage, { placed: (view, request) => this.#place(view, request), compare: (reference) => this.#compareWith(reference) });
    this.stage.element.hidden = true;
  }

  #begin(element) {
    this.stop?.abort();
    this.stop = new AbortController();
    this.job = null;
    this.view = null;
    this.shown = "";
    this.#put(element);
    return this.stop.signal;
  }

  /** A card instead of the viewer. */
  #put(element) {
    this.card.replaceChildren(element);
    this.card.hidden = false;
    this.stage.element.hidden = true;
    this.samples.hidden = true;
    this.inspector.hidden = true;
    document.body.classList.remove("has-result");
  }

  #showInspector() {
    this.inspector.hidden = false;
    document.body.classList.add("has-result");
  }

  showEmpty() {
    this.#begin(h("div.card.empty", {},
      h("div.tiles", { "aria-hidden": "true" }, ["axial", "coronal", "sagittal"].map((plane) => h(`span.${plane}`, {}))),
      h("h2", {}, "Nothing to show yet"),
      h("p", {}, "Ask for a CT on the left, or drop a label map or a CT here: NIfTI, NRRD, MetaImage, or DICOM as a folder or a zip."),
      h("div.buttons", {}, button("plus", "Generate an example", this.actions.example, { kind: "primary" }), button("up", "Open a file", this.actions.choose))));
  }

  showWait(text) {
    this.#begin(h("div.card", { role: "status" }, h("h2", {}, text), h("progress", { "aria-label": text })));
  }

  showFailure(title, text, again, hint = "") {
    this.#begin(this.#failure(title, text, hint, button("repeat", "Try again", again)));
  }

  #failure(title, text, hint, ...buttons) {
    return h("div.card.failed", { role: "alert" }, icon("alert"), h("h2", {}, title), h("p.problem-text", {}, text), hint && h("p.hint", {}, hint), h("div.buttons", {}, buttons));
  }

  async openJob(id) {
    const stop = this.#begin(h("div.card", { role: "status" }, h("h2", {}, "Looking for the job"), h("progress", { "aria-label": "Looking for the job" })));
    try {
      await followJob(id, (job) => stop.aborted || this.#jobIs(job, stop), stop);
    } catch (error) {
      if (!stop.aborted) this.showFailure("This job cannot be shown", error.message, () => this.openJob(id));
    }
  }

  #jobIs(job, stop) {
    this.job = job;
    if (job.state === "done") return this.#result(job, stop).catch((error) => stop.aborted || this.actions.fail(error));
    if (isActive(job)) return this.#put(this.#progress(job));
    const title = job.state === "cancelled" ? "The job was cancelled" : "The job failed";
    const text = job.problem?.detail || job.problem?.title || (job.state === "cancelled" ? "What was finished before lies among its files." : "");
    const accepted = job.problem?.accepted;
    const hint = accepted && !text.includes(accepted) ? `Accepted: ${accepted}` : summary(job);
    const change = KINDS[job.kind] && button("edit", "Change and start again", () => this.actions.change(job));
    this.#put(this.#failure(title, text, hint, button("repeat", "Repeat", () => this.actions.repeat(job)), change));
  }

  #progress(job) {
    const steps = job.total > 1 ? `${job.done} of ${job.total}` : "";
    const waiting = job.state === "queued";
    const left = job.seconds_left ? `about ${duration(job.seconds_left)} left` : "";
    const samples = samplesOf(job.artifacts || []).length;
    const doing = waiting ? "Waiting for a worker" : capitalStage(job.stage);
    const cancel = button("stop", "Cancel", () => end(job).catch(this.actions.fail));
    const line = [steps, left, samples && job.request.count > 1 ? `${samples} of ${job.request.count} samples done` : ""].filter(Boolean).join(" · ");
    return h("div.card.running", { role: "status" }, h("h2", {}, KINDS[job.kind]?.text || job.kind), h("p.summary", {}, summary(job)), h("p.doing", {}, doing), bar(job), h("p.hint", {}, line || "\u00a0"), h("div.buttons", {}, cancel));
  }

  async #result(job, stop) {
    const samples = samplesOf(job.artifacts);
    const files = await listFiles(job);
    if (stop.aborted) return;
    showFiles($("files"), job, files, this.actions.fail);
    showFacts($("facts"), job, this.actions);
    if (!samples.length) {
      this.#put(h("div.card", {}, icon("check"), h("h2", {}, "Done"), h("p", {}, "Nothing of it is a picture; the files are beside.")));
      this.#showInspector();
      return;
    }
    this.#listSamples(job, samples, stop);
    await this.#showSample(job, samples[0], stop);
  }

  #listSamples(job, samples, stop) {
    const buttons = samples.map((sample) => {
      const each = button(null, sample.stem.split("/").at(-1) || "result", () => this.#showSample(job, sample, stop), { kind: "tool" });
      each.dataset.stem = sample.stem;
      return each;
    });
    this.samples.replaceChildren(...buttons);
  }

  async #showSample(job, sample, stop) {
    for (const each of this.samples.children) each.setAttribute("aria-pressed", String(each.dataset.stem === sample.stem));
    const view = viewOf(job, sample);
    const original = originalOf(job);
    await this.#view(view, original && { ...original, labels: view.labels && original.labels }, stop);
    this.samples.hidden = this.samples.children.length < 2;
    const report = sample.quality ? await readJson(fileOf(job, sample.quality)) : null;
    if (!stop.aborted) showQuality($("quality"), report, (id) => this.stage.goToStructure(id));
  }

  /** A view in the viewer, with another one beside it where there is one. */
  async #view(view, beside, stop) {
    this.view = view;
    this.shown = beside?.reference || "";
    const share = h("progress", { max: 1, "aria-label": "Loading the picture" });
    this.card.replaceChildren(h("div.card", { role: "status" }, h("h2", {}, "Loading the picture"), share));
    this.card.hidden = false;
    this.stage.element.hidden = false; // a canvas without a size draws nothing
    this.stage.element.classList.add("loading");
    try {
      const views = beside ? [beside, view] : [view];
      if (!(await this.stage.show(views, (value) => (share.value = value))) || stop.aborted) return;
    } catch (error) {
      if (stop.aborted) return;
      return this.#put(this.#failure("The picture cannot be shown", noWebGl(error), "The files can be downloaded all the same."));
    }
    this.card.hidden = true;
    this.stage.element.classList.remove("loading");
    this.#showInspector();
    this.jobsChanged();
    const last = this.stage.panes.at(-1);
    this.stage.begin(this.job?.request.at);
    showLegend($("legend"), last, (hidden) => this.stage.setHidden(hidden), (id) => this.stage.goToStructure(id));
  }

  async openUpload(id) {
    const stop = this.#begin(h("div.card", { role: "status" }, h("h2", {}, "Opening the file"), h("progress", { "aria-label": "Opening the file" })));
    try {
      const upload = await known(id);
      if (stop.aborted) return;
      const view = { name: upload.name, reference: `upload:${id}`, [upload.kind === "labels" ? "labels" : "image"]: volumeOf(upload) };
      $("files").replaceChildren(h("p.nothing", {}, "This is a file of yours."));
      $("facts").replaceChildren(uploadFacts(upload));
      showQuality($("quality"), null);
      await this.#view(view, null, stop);
    } catch (error) {
      if (!stop.aborted) this.showFailure("This file cannot be shown", error.message, () => this.openUpload(id));
    }
  }

  /** What can stand beside the result: every other one, and the original of a changed CT. */
  jobsChanged() {
    if (!this.view) return;
    const original = this.job && originalOf(this.job);
    const others = jobs.get().filter((job) => job.state === "done").flatMap((job) => samplesOf(job.artifacts).filter(({ image }) => image).map((sample) => viewOf(job, sample)));
    this.others = [...(original ? [original] : []), ...others.filter(({ reference }) => reference !== this.view.reference && reference !== original?.reference)];
    this.stage.setBeside(this.others.map(({ reference, name }) => ({ value: reference, text: name })), this.shown);
  }

  #compareWith(reference) {
    const beside = this.others.find((each) => each.reference === reference) || null;
    this.#view(this.view, beside, this.stop.signal).catch(this.actions.fail);
  }

  #place(view, request) {
    const labels = view.labelReference ? { labels: view.labelReference } : {};
    this.actions.place({ source: view.reference, ...labels, ...request });
  }
}

function viewOf(job, sample) {
  const reference = (name) => name && `job:${job.id}/${name}`;
  return {
    name: `${sample.stem || "result"} · ${summary(job)}`,
    image: sample.image && fileOf(job, sample.image),
    labels: sample.labels && fileOf(job, sample.labels),
    reference: reference(sample.image || sample.labels),
    labelReference: reference(sample.labels),
  };
}

/** The CT that a job changed, as a view; null where it changed none. */
function originalOf({ request }) {
  const [, kind, id, name] = /^(job|upload):([\w-]+)(?:\/(.*))?$/.exec(request?.source || "") || [];
  if (!kind) return null;
  const labels = /^job:([\w-]+)\/(.*)$/.exec(request.labels || "");
  return {
    name: "Original",
    reference: request.source,
    labelReference: request.labels,
    image: kind === "upload" ? volumeOf({ id }) : fileOf({ id }, name),
    labels: labels ? fileOf({ id: labels[1] }, labels[2]) : undefined,
  };
}

const STAGES = { load: "Loading the model", labels: "Drawing the labels", sample: "Sampling", decode: "Decoding", check: "Checking the result", write: "Writing" };
const capitalStage = (stage) => STAGES[stage] || (stage ? stage.charAt(0).toUpperCase() + stage.slice(1) : "Starting");

function uploadFacts({ name, kind, shape, spacing_mm: spacing, structures = [] }) {
  const facts = [["File", name], ["Kind", kind === "labels" ? "label map" : "CT"], ["Size", shape?.join(" × ")], ["Spacing", spacing && `${spacing.map((each) => Number(each.toFixed(2))).join(" × ")} mm`], ["Structures", structures.length || ""]];
  return h("dl.facts", {}, facts.filter(([, value]) => value).flatMap(([each, value]) => [h("dt", {}, each), h("dd", {}, String(value))]));
}

const noWebGl = (error) => (/webgl/i.test(error.message) ? "This browser has no WebGL 2, which the viewer needs." : error.message);
