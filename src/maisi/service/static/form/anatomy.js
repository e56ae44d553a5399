// Structures that are asked for: found by their names, each with a size in the words of `maisi generate --anatomy`.

import { button, h, say } from "../dom.js";
import { isIn, search, named } from "../vocabulary.js";
import { group } from "./fields.js";

const SHOWN = 40;
const WAYS = {
  size: { text: "size", min: 0, max: 1, step: 0.05, start: 0.5, unit: "", hint: "0 small, 0.5 usual, 1 large" },
  ml: { text: "ml", min: 0, step: "any", start: 100, unit: "ml", hint: "Volume" },
  mm: { text: "mm", min: 0, step: "any", start: 20, unit: "mm", hint: "Diameter" },
  any: { text: "present" },
  none: { text: "absent" },
};

/** The field `anatomy`; `region()` says which structures come first. */
export function anatomy(name, region, changed) {
  const rows = h("ul.wishes", {});
  const finder = finderOf(region, (label) => add(label.name));
  const element = group(name, "Anatomy and tumours", [finder.element, rows], "Anything not named is as it happens to be.");
  const add = (which, text) => {
    if ([...rows.children].some((row) => row.dataset.name === which)) return say(`${which} is there already`);
    const row = wishRow(which, text, () => {
      row.remove();
      changed();
    });
    row.addEventListener("input", changed);
    rows.append(row);
    changed();
    if (text === undefined) row.querySelector("select").focus();
  };
  const read = () => (rows.children.length ? [...rows.children].map((row) => row.wish()) : undefined);
  const write = (wishes) => {
    rows.replaceChildren();
    const list = Array.isArray(wishes) ? wishes : Object.entries(wishes || {}).map(([each, size]) => `${each}=${size}`);
    for (const wish of list) add(...String(wish).split(/=(?=[^=]*$)/));
  };
  return { name, element, read, write };
}

function wishRow(name, text, dropped) {
  const label = named(name);
  const { wish, amount } = wishOf(text, label);
  const ways = Object.entries(WAYS).filter(([way]) => way === wish || waysOf(label).includes(way));
  const way = h("select", { "aria-label": `${name}: how` }, ways.map(([value, { text: shown }]) => h("option", { value }, shown)));
  const value = h("input", { type: "number", "aria-label": `${name}: how much` });
  const turn = (start) => {
    const { min, max, step, hint, start: usual } = WAYS[way.value];
    value.hidden = usual === undefined;
    Object.assign(value, { min: min ?? "", max: max ?? "", step: step ?? "any", title: hint ?? "", value: start ?? usual ?? "" });
  };
  way.value = wish;
  turn(amount);
  way.addEventListener("input", () => turn());
  const row = h("li.wish", {}, swatch(label), h("span.name", {}, name), value, way, button("close", `Leave out ${name}`, dropped, { bare: true, kind: "quiet" }));
  row.dataset.name = name;
  row.wish = () => `${name}=${value.hidden ? way.value : `${value.value}${WAYS[way.value].unit}`}`;
  return row;
}

/** How a structure can be asked for: bones, for one, have the size that their body gives them. */
function waysOf(label) {
  if (label?.tumour) return ["mm", "ml", "any", "none"];
  return label?.sized === false ? ["any", "none"] : ["size", "ml", "any", "none"];
}

/** Way and amount of a size in words, such as `180ml`. */
function wishOf(text, label) {
  if (text === undefined) return { wish: waysOf(label)[0] };
  const said = text.trim().toLowerCase();
  if (said === "none" || said === "any") return { wish: said };
  const [, amount, unit] = /^([\d.e-]+)\s*([a-z0-9]*)$/.exec(said) || [null, "0.5", ""];
  if (unit === "mm" || unit === "cm") return { wish: "mm", amount: Number(amount) * (unit === "cm" ? 10 : 1) };
  return unit ? { wish: "ml", amount: Number(amount) * (unit === "l" ? 1000 : 1) } : { wish: "size", amount: Number(amount) };
}

export const swatch = (label) => h("span.swatch", { style: { "--colour": label?.colour || "#9aa0a6" } });

/** A combobox by the pattern of WAI-ARIA: type, arrows, Enter. */
function finderOf(region, chosen) {
  const list = h("ul.options", { id: "anatomy-options", role: "listbox", "aria-label": "Structures", hidden: true });
  const input = h("input", {
    type: "search", role: "combobox", placeholder: "Search structures and tumours", autocomplete: "off",
    "aria-label": "Add a structure or tumour", "aria-controls": list.id, "aria-expanded": "false", "aria-autocomplete": "list",
  });
  let at = -1;
  const point = (index) => {
    at = index;
    [...list.children].forEach((option, each) => option.setAttribute("aria-selected", String(each === at)));
    const option = list.children[at];
    input.setAttribute("aria-activedescendant", option?.id || "");
    option?.scrollIntoView({ block: "nearest" });
  };
  const open = (is) => {
    list.hidden = !is;
    input.setAttribute("aria-expanded", String(is));
    if (!is) point(-1);
  };
  const take = (label) => {
    input.value = "";
    open(false);
    chosen(label);
  };
  const show = () => {
    const found = search(input.value, region()).slice(0, SHOWN);
    const options = found.map((label, index) => optionOf(label, index, region(), () => take(label)));
    list.replaceChildren(...(options.length ? options : [h("li.nothing", {}, "No structure has this name")]));
    open(true);
    list.scrollIntoView({ block: "nearest" });
    point(input.value && found.length ? 0 : -1);
    list.found = found;
  };
  input.addEventListener("input", (event) => {
    event.stopPropagation(); // searching changes no request
    show();
  });
  input.addEventListener("focus", show);
  input.addEventListener("blur", () => setTimeout(() => open(false), 150));
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") open(false);
    if (event.key === "Enter") event.preventDefault();
    if (event.key === "Enter" && at >= 0) take(list.found[at]);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    if (list.hidden) show();
    point(Math.min(Math.max(at + step, 0), list.found.length - 1));
  });
  return { element: h("div.finder", {}, input, list) };
}

function optionOf(label, index, region, take) {
  const where = isIn(label, region) ? (label.tumour ? "tumour" : "") : label.region;
  const option = h("li", { id: `anatomy-option-${index}`, role: "option", onmousedown: take }, swatch(label), h("span", {}, label.name), where && h("span.where", {}, where));
  return option;
}
