// Which volume or label map a request is about: an upload, or a file of a finished job.

import { h } from "../dom.js";
import { jobs, samplesOf } from "../jobs.js";
import { uploads } from "../uploads.js";
import { choice } from "./fields.js";

/** A list of what is there of a kind, `image` or `labels`, as references of the service. */
export function source(name, text, kind, { empty, also = [] } = {}) {
  const options = () => [...also, ...ofUploads(kind), ...ofJobs(kind)];
  const missing = empty === undefined ? "drop a file, or choose" : empty;
  const hint = kind === "image" ? "A CT dropped on the page, or the result of a job." : "A label map dropped on the page, or the result of a job.";
  const field = choice(name, text, options(), { empty: missing, hint });
  let wasShown = false;
  const fill = () => {
    if (wasShown && !field.select.isConnected) return stops.forEach((stop) => stop()); // another form is in its place
    wasShown = field.select.isConnected;
    return field.fill(options());
  };
  const stops = [uploads, jobs].map((store) => store.watch(fill));
  const write = (value) => {
    if (value && ![...field.select.options].some((option) => option.value === value)) {
      field.select.append(h("option", { value }, value));
    }
    field.write(value ?? "");
  };
  return { ...field, write };
}

function ofUploads(kind) {
  return uploads.get().filter((each) => each.kind === kind).map(({ id, name }) => ({ value: `upload:${id}`, text: name }));
}

function ofJobs(kind) {
  const done = jobs.get().filter((job) => job.state === "done");
  return done.flatMap((job) =>
    samplesOf(job.artifacts)
      .filter((sample) => sample[kind])
      .map((sample) => ({ value: `job:${job.id}/${sample[kind]}`, text: `${sample.stem} of ${job.kind} ${job.id.slice(0, 6)}` })),
  );
}
