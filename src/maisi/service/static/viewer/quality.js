// What the check of a sample found, beside its picture.

import { h, icon, svg } from "../dom.js";
import { capital, millilitres } from "../units.js";

/** Fill `root` with the report of a generated or an inpainted sample. */
export function showQuality(root, report, go) {
  if (!report) return root.replaceChildren(h("p.nothing", {}, "No report belongs to this result."));
  root.replaceChildren(...(report.lesions ? lesions(report.lesions) : structures(report, go)));
}

function structures(report, go) {
  const failed = report.structures.filter((each) => !each.passed);
  const own = report.findings.map((each) => [each.level, each.words]);
  const theirs = report.structures.flatMap(({ name, findings }) => findings.map((each) => [each.level, `${capital(name)}: ${each.words}`]));
  const of = (wanted) => [...own, ...theirs].filter(([level]) => (level === "fail") === wanted).map(([level, words]) => h(`li.${level}`, {}, words));
  const [fails, remarks] = [of(true), of(false)];
  const facts = [["Labels from", report.labels_from], ["Contrast phase", report.phase], ["Tries", report.tries]].filter(([, value]) => value);
  return [
    verdict(report.passed, failed.length, report.structures.length),
    ...(fails.length ? [h("ul.findings", {}, fails)] : []),
    h("dl.facts", {}, facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))])),
    h("table.quality", {}, h("caption", {}, "Median HU of each structure, on the range of real scans"), head(), h("tbody", {}, report.structures.map((each) => row(each, go)))),
    ...(remarks.length ? [h("details.more", {}, h("summary", {}, `${remarks.length} remarks that fail nothing`), h("ul.findings", {}, remarks))] : []),
  ];
}

function verdict(good, failed, all) {
  const bad = failed ? `${failed} of ${all} structures are not as they should be` : "The image is not as it should be";
  const text = good ? `All ${all} structures are as they should be` : bad;
  return h(`p.verdict.${good ? "good" : "bad"}`, {}, icon(good ? "check" : "alert"), h("span", {}, text));
}

const head = () => h("thead", {}, h("tr", {}, ["Structure", "Volume", "HU"].map((text) => h("th", { scope: "col" }, text))));

function row(each, go) {
  const volume = [millilitres(each.ml), each.asked_ml && h("span.asked", {}, `asked ${millilitres(each.asked_ml)}`)];
  const name = h("button.name", { type: "button", onclick: () => go(each.id) }, capital(each.name));
  const mark = each.passed ? null : h("span.bad", { title: each.findings.map(({ words }) => words).join("; ") }, icon("alert"), h("span.unseen", {}, "not as it should be"));
  return h("tr", {}, h("th", { scope: "row" }, name, mark), h("td", {}, volume), h("td", {}, each.hu ? hu(each.hu) : "–"));
}

/** A median as a dot over the usual range, within the believable one. */
function hu({ median, reference }) {
  const [low, high] = reference?.believable ?? [0, 0];
  if (!(high > low) || !Number.isFinite(median)) return Number.isFinite(median) ? String(Math.round(median)) : "–";
  const on = (value) => 2 + 76 * Math.min(1, Math.max(0, (value - low) / (high - low)));
  const [from, to] = reference.usual.map(on);
  const text = `${Math.round(median)} HU; usual ${reference.usual.map(Math.round).join(" to ")}`;
  const inside = median >= reference.usual[0] && median <= reference.usual[1];
  const picture = svg("svg", { class: "range", viewBox: "0 0 80 12", role: "img", "aria-label": text },
    svg("line", { class: "believable", x1: 2, x2: 78, y1: 6, y2: 6 }),
    svg("line", { class: "usual", x1: from, x2: to, y1: 6, y2: 6 }),
    svg("circle", { class: inside ? "dot" : "dot off", cx: on(median), cy: 6, r: 3.2 }),
  );
  return h("span.hu", { title: text }, picture, String(Math.round(median)));
}

function lesions(found) {
  return found.map((each, index) => {
    const facts = [
      ["Volume", millilitres(each.ml)],
      ["HU before", Math.round(each.hu_before)],
      ["HU after", Math.round(each.hu_after)],
      ["Contrast", each.contrast?.made_by === "network" ? "the network's" : "the table's"],
      ["Voxels changed", each.voxels_changed.toLocaleString()],
    ];
    const title = capital(each.tumour || `lesion ${index + 1}`);
    return h("section", {}, h("h3", {}, title), h("dl.facts", {}, facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))])));
  });
}
