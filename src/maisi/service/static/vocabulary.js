// The structures: names, colours, hosts of tumours; and the bundles.

import { get } from "./api.js";

const EVERYWHERE = new Set(["body", "fat", "air"]); // in the way of all else

let labels = [];
let models = [];
let byId = new Map();

export async function loadVocabulary() {
  const [found, bundles] = await Promise.all([get("labels"), get("models")]);
  labels = found.labels;
  models = bundles.models;
  byId = new Map(labels.map((label) => [label.id, label]));
}

export const structures = () => labels;
export const tumours = () => labels.filter((label) => label.tumour);
export const bundles = () => models;
export const bundle = (name) => models.find((each) => each.name === name) || models.find((each) => each.default) || models[0];
export const structure = (id) => byId.get(id) || { id, name: `structure ${id}`, names: [], colour: "#9aa0a6", host: [] };
export const named = (name) => labels.find((label) => label.name === name);
export const isEverywhere = (id) => EVERYWHERE.has(structure(id).name);

/** Whether a tumour may lie in a structure. */
export function hosts(tumour, id) {
  const { name, group, groups = [] } = structure(id);
  return name === tumour || Boolean(named(tumour)?.host?.some((host) => host === name || host === group || groups.includes(host)));
}

/** Structures whose names hold all words, those that begin so first. */
export function search(words, region = null) {
  const wanted = words.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const rank = (label) => {
    const names = [label.name, ...(label.names || [])].map((name) => name.toLowerCase());
    const match = names.findIndex((name) => wanted.every((word) => name.includes(word)));
    if (match < 0) return -1;
    const begins = names[match].startsWith(wanted[0] || "") ? 0 : 2;
    return begins + (match ? 1 : 0) + (isIn(label, region) ? 0 : 4);
  };
  return labels
    .filter((label) => !isEverywhere(label.id))
    .map((label) => [rank(label), label])
    .filter(([each]) => each >= 0)
    .sort(([a, x], [b, y]) => a - b || x.name.localeCompare(y.name))
    .map(([, label]) => label);
}

export const isIn = (label, region) => !region || !label.region || label.region === "any" || label.region === region;
