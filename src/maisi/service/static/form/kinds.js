// What can be asked for: the fields of each kind of job, named as in the request.

import { capital } from "../units.js";
import { bundle, bundles, tumours } from "../vocabulary.js";
import { anatomy } from "./anatomy.js";
import { check, choice, number, pills, seed, triple, words } from "./fields.js";
import { source } from "./source.js";

const SOLVERS = ["multistep", "euler", "ancestral"].map((value) => ({ value, text: value }));

const steps = (value) => number("steps", "Steps", { whole: true, min: 1, placeholder: String(value), hint: "More steps, finer and slower." });
const samples = () => number("count", "Samples", { whole: true, min: 1, placeholder: "1" });
const memory = () => words("compute.memory", "Memory at most", { placeholder: "as much as there is", hint: "Such as 4GB; slower, the same result." });
const force = (text) => check("force", text);

// What a model must have for a kind of job.
const makesCts = (each) => each.networks.includes("unet");
const readsCts = (each) => each.networks.includes("autoencoder");
const segments = (each) => each.networks.includes("segmenter");
const drawsLabels = (each) => each.draws_labels;

function model(can) {
  const able = bundles().filter(can);
  return choice("bundle", "Model", able.map(({ name }) => ({ value: name, text: name })), { hint: able.length > 1 ? "" : able[0]?.description });
}

const tumourOptions = () => tumours().map(({ name }) => ({ value: name, text: capital(name) }));

function regions() {
  const known = bundle()?.regions?.length ? bundle().regions : ["head", "chest", "abdomen", "lower"];
  const first = known.includes("chest") ? "chest" : known[0];
  const options = [first, ...known.filter((each) => each !== first)].map((value) => ({ value, text: capital(value) }));
  options.sort((a, b) => known.indexOf(a.value) - known.indexOf(b.value));
  return { options, first };
}

function region() {
  const { options, first } = regions();
  const field = pills("region", "Region", options);
  field.write(first);
  return { ...field, write: (value) => field.write(value ?? first) };
}

function sizeAndSpacing() {
  const { max_size: most, min_spacing_mm: least, max_spacing_mm: widest } = bundle()?.limits || {};
  const size = most ? `Up to ${most.join(" × ")}; empty: what shows the region.` : "Empty: what shows the region.";
  const spacing = least ? `${least[0]} to ${widest[0]} mm; empty: what suits the region.` : "";
  return [
    triple("size", "Size in voxels", { whole: true, min: 1, hint: size }),
    triple("spacing", "Spacing in mm", { min: 0.1, hint: spacing }),
  ];
}

function labelsFrom() {
  const from = source("labels", "Labels", "labels", { empty: "drawn from maps of real people", also: [{ value: "phantom", text: "a drawn phantom, all structures" }] });
  const read = () => (from.read() === "phantom" ? undefined : from.read());
  return { ...from, read, more: () => (from.read() === "phantom" ? { phantom: true } : {}), fill: (request) => from.write(request.phantom ? "phantom" : request.labels) };
}

function generate(changed) {
  const where = region();
  const labels = labelsFrom();
  return {
    fields: [where, anatomy("anatomy", where.read, changed), labels, ...sizeAndSpacing(), seed("seed")],
    advanced: [
      steps(10), samples(), model(makesCts), choice("solver", "Solver", SOLVERS),
      number("controlnet_scale", "How strongly labels steer", { min: 0, placeholder: "the model's" }),
      number("guidance_labels", "Guidance by labels", { min: 0, placeholder: "1" }),
      memory(), force("Go on beyond what the model was trained for"),
    ],
    tidy: (request) => (request.labels ? omit(request, "region") : request),
  };
}

function inpaint() {
  const remove = pills("what", "What to do", [{ value: "", text: "Put a tumour in" }, { value: "remove", text: "Take lesions out" }]);
  const tumour = choice("tumor", "Tumour", tumourOptions());
  const at = triple("at", "Place in mm (x right, y front, z up)", { hint: "Click “Place a tumour” in the picture, or leave empty for a place drawn in the host." });
  const diameter = number("diameter", "Diameter in mm", { min: 1, value: 20 });
  return {
    fields: [source("source", "CT", "image"), source("labels", "Its labels", "labels", { empty: "coarse tissues, found by HU" }), remove, tumour, at, diameter, seed("seed")],
    advanced: [
      steps(10), model(makesCts), choice("solver", "Solver", SOLVERS),
      choice("contrast", "Whose HU the lesion has", [{ value: "network", text: "the network's" }, { value: "reference", text: "the table's where the network's are off" }], { empty: "as the model claims" }),
      memory(), force("Also where the lesion does not lie in its host"),
    ],
    tidy: (request) => tidyInpaint(request),
    untidy: (request) => ({ ...request, what: request.remove ? "remove" : "" }),
  };
}

function tidyInpaint({ what, ...request }) {
  if (what === "remove") return { ...omit(request, "at", "diameter", "tumor", "contrast"), remove: true };
  return request.at ? request : { ...request, random: 1 };
}

function omit(request, ...names) {
  return Object.fromEntries(Object.entries(request).filter(([name]) => !names.includes(name)));
}

function labelsGenerate(changed) {
  const where = region();
  return {
    fields: [
      where, anatomy("anatomy", where.read, changed),
      triple("size", "Size in voxels", { whole: true, min: 1, hint: "Empty: all that the model draws." }),
      triple("spacing", "Spacing in mm", { min: 0.1, hint: "Empty: the model's." }),
      seed("seed"),
    ],
    advanced: [steps(30), samples(), model(drawsLabels), number("guidance", "Guidance", { min: 0, placeholder: "1" }), memory()],
  };
}

function labelsAugment() {
  return {
    fields: [
      source("labels", "Label map", "labels"),
      choice("add", "Plant", tumourOptions(), { empty: "nothing: vary the tumours that are there" }),
      number("diameter", "Diameter in mm", { min: 1, placeholder: "drawn" }),
      number("strength", "How far tumours are varied", { min: 0, placeholder: "1" }),
      samples(), seed("seed"),
    ],
    advanced: [],
    tidy: (request) => (request.add ? omit(request, "strength") : omit(request, "diameter")),
  };
}

const ofImage = (can) => () => ({ fields: [source("source", "CT", "image")], advanced: [model(can), memory()] });

/** Each kind: its name, the verb on its button, its fields, and what a model must be able to do. */
export const KINDS = {
  generate: { text: "Generate a CT", verb: "Generate", make: generate },
  inpaint: { text: "Change a CT", more: "tumours in or out", verb: "Inpaint", make: inpaint },
  "labels-augment": { text: "Vary a label map", verb: "Vary", make: labelsAugment },
  "labels-generate": { text: "Draw a label map", verb: "Draw", make: labelsGenerate, here: drawsLabels },
  segment: { text: "Segment a CT", verb: "Segment", make: ofImage(segments), here: segments },
  reconstruct: { text: "Encode a CT and decode it again", verb: "Reconstruct", make: ofImage(readsCts) },
};

/** The kinds that some model here can do. */
export const kindsHere = () => Object.keys(KINDS).filter((kind) => !KINDS[kind].here || bundles().some(KINDS[kind].here));
