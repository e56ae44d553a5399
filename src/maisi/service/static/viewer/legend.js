// The structures of a result: colour, volume, on and off, and a way to where each is.

import { button, h } from "../dom.js";
import { structure } from "../vocabulary.js";
import { capital, millilitres } from "../units.js";

/** Fill `root` for a pane; `changed(hidden)` hears which ids are off, `go(id)` which one is to be looked at. */
export function showLegend(root, pane, changed, go) {
  if (!pane.counts.size) {
    root.replaceChildren(h("p.nothing", {}, "This result has no labels."));
    return;
  }
  const perVoxel = voxelMl(pane.map.hdr);
  const items = [...pane.counts].map(([id, count]) => ({ ...structure(id), ml: count * perVoxel }));
  items.sort((a, b) => Number(b.tumour ?? 0) - Number(a.tumour ?? 0) || a.name.localeCompare(b.name));
  const boxes = new Map();
  const hide = (ids) => {
    for (const [id, box] of boxes) box.checked = !ids.has(id);
    changed(ids);
  };
  const ticked = () => changed(new Set([...boxes].filter(([, box]) => !box.checked).map(([id]) => id)));
  const rows = items.map((item) => {
    const box = h("input", { type: "checkbox", checked: !pane.hidden.has(item.id), onchange: ticked, "aria-label": `Show ${item.name}` });
    boxes.set(item.id, box);
    const swatch = h("span.swatch", { style: { "--colour": item.colour } });
    const only = () => hide(new Set([...boxes.keys()].filter((id) => id !== item.id)));
    const name = h("button.name", { type: "button", title: "Go there; double click: this one only", onclick: () => go(item.id), ondblclick: only }, capital(item.name));
    return h(`li${item.tumour ? ".tumour" : ""}`, {}, h("label.tick", {}, box, swatch), name, h("span.ml", {}, millilitres(item.ml)));
  });
  const filter = h("input", { type: "search", placeholder: `Find among ${items.length}`, "aria-label": "Find a structure of this result" });
  filter.addEventListener("input", () => {
    const wanted = filter.value.trim().toLowerCase();
    rows.forEach((row, index) => (row.hidden = !items[index].name.toLowerCase().includes(wanted)));
  });
  const all = button(null, "All", () => hide(new Set()), { kind: "small", "aria-label": "Show all structures" });
  const none = button(null, "None", () => hide(new Set(boxes.keys())), { kind: "small", "aria-label": "Hide all structures" });
  root.replaceChildren(h("div.legend-head", {}, filter, all, none), h("ul.legend", { "aria-label": "Structures" }, rows));
}

const voxelMl = ({ pixDims }) => Math.abs(pixDims[1] * pixDims[2] * pixDims[3]) / 1000;
