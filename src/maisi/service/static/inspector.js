// What belongs to the result that is shown: its files in every format, and what was asked for.

import { download } from "./api.js";
import { button, h, say } from "./dom.js";
import { archiveOf, fileOf } from "./jobs.js";
import { KINDS } from "./form/kinds.js";
import { bytes, duration } from "./units.js";

const FORMATS = {
  zip: ["NIfTI", "All files as they are"],
  dicom: ["DICOM", "CT series, marked as synthetic"],
  seg: ["DICOM SEG", "Labels as a segmentation"],
  rtstruct: ["RT-STRUCT", "Labels as contours"],
  nrrd: ["NRRD", "With .seg.nrrd for 3D Slicer"],
  mha: ["MetaImage", ".mha"],
};

/** Fill `root` with the files of a job. */
export function showFiles(root, job, files, failed) {
  const archives = Object.entries(FORMATS).map(([format, [text, hint]]) => {
    const fetchIt = working(() => download(archiveOf(job, format), `${job.kind}_${job.id.slice(0, 8)}_${format}.zip`), failed);
    return h("li", {}, button("down", text, fetchIt, { "aria-label": `Download as ${text}: ${hint}` }), h("span.hint", {}, hint));
  });
  const rows = files.map((file) => {
    const name = file.name.split("/").at(-1);
    const fetchIt = working(() => download(fileOf(job, file.name), name), failed);
    return h("li", {}, button("file", file.name, fetchIt, { kind: "quiet", "aria-label": `Download ${file.name}` }), h("span.size", {}, bytes(file.bytes)));
  });
  root.replaceChildren(h("h3", {}, "All of it as"), h("ul.archives", {}, archives), h("h3", {}, "Single files"), h("ul.file-list", {}, rows));
}

/** A click that takes a while: the button waits, and says so. */
function working(act, failed) {
  return async (event) => {
    const pressed = event.currentTarget;
    pressed.setAttribute("aria-busy", "true");
    pressed.disabled = true;
    try {
      await act();
      say("The download is ready");
    } catch (error) {
      failed(error);
    } finally {
      pressed.removeAttribute("aria-busy");
      pressed.disabled = false;
    }
  };
}

/** Fill `root` with what a job was asked for. */
export function showFacts(root, job, { repeat, change }) {
  const took = job.started && job.finished ? seconds(job.finished) - seconds(job.started) : null;
  const facts = [["Job", job.id], ["What", KINDS[job.kind]?.text || job.kind], ["Took", duration(took)], ...flat(job.request)];
  const copy = () => navigator.clipboard.writeText(JSON.stringify({ kind: job.kind, request: job.request }, null, 1)).then(() => say("Copied"));
  root.replaceChildren(
    h("dl.facts", {}, facts.filter(([, value]) => value !== "").flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))])),
    h("div.buttons", {}, button("repeat", "Repeat", () => repeat(job)), KINDS[job.kind] && button("edit", "Change", () => change(job)), button("file", "Copy as JSON", copy)),
  );
}

const seconds = (time) => (typeof time === "number" ? time : Date.parse(time) / 1000);

function flat(request, above = "") {
  return Object.entries(request || {}).flatMap(([name, value]) => {
    if (value === null || value === undefined || (Array.isArray(value) && !value.length)) return [];
    if (typeof value === "object" && !Array.isArray(value)) return flat(value, `${above}${name}.`);
    return [[`${above}${name}`, Array.isArray(value) ? value.join(", ") : value]];
  });
}
