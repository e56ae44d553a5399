// The picture: one result, or two side by side, with the tools of a reading room.

import { fetchBytes } from "../api.js";
import { button, h, icon, say } from "../dom.js";
import { structure } from "../vocabulary.js";
import { placePanel } from "./place.js";
import { WINDOWS, rangeOf } from "./windows.js";

const LAYOUTS = { all: "All", axial: "Axial", coronal: "Coronal", sagittal: "Sagittal", solid: "3-D" };
const KEYS = { 1: "soft", 2: "lung", 3: "bone" };

/** The viewer in `root`. `placed(view, request)` hears of tumours that are to be put in. */
export class Stage {
  constructor(root, { placed, compare }) {
    this.placed = placed;
    this.compare = compare;
    this.panes = [];
    this.window = "soft";
    this.layout = matchMedia("(max-width: 719px)").matches ? "axial" : "all";
    this.labelsOn = true;
    this.outline = 0;
    this.marked = null;
    this.place = h("output.crosshair", { "aria-live": "off" });
    this.toolbar = this.#toolbar();
    this.grid = h("div.panes", {});
    this.foot = h("div.stage-foot", {}, this.place);
    this.element = h("div.viewer", {}, this.toolbar, this.grid, this.foot);
    this.element.addEventListener("keydown", (event) => this.#key(event), true);
    root.append(this.element);
    new ResizeObserver(() => this.panes.forEach((pane) => pane.setLayout(this.layout))).observe(this.grid);
  }

  #toolbar() {
    this.windowButtons = segmented("Window", Object.entries(WINDOWS).map(([value, { text }]) => [value, text]), (value) => this.setWindow(value));
    this.level = h("output.level", { title: "Drag with the right mouse button to change level and width" });
    this.layoutButtons = segmented("Layout", Object.entries(LAYOUTS), (value) => this.setLayout(value));
    this.labelsButton = button("eye", "Labels", () => this.toggleLabels(), { kind: "tool", "aria-pressed": "true" });
    this.outlineButton = button(null, "Outline", () => this.toggleOutline(), { kind: "tool", "aria-pressed": "false" });
    this.opacity = h("input", { type: "range", min: 0, max: 1, step: 0.05, value: 0.55, "aria-label": "Opacity of labels" });
    this.opacity.addEventListener("input", () => this.#showLabels(true));
    this.placeButton = button("target", "Place a tumour", () => (this.placing ? this.leavePlacing() : this.startPlacing()), { kind: "tool", "aria-pressed": "false" });
    this.beside = h("select", { "aria-label": "Beside it" });
    this.beside.addEventListener("change", () => this.compare(this.beside.value));
    return h("div.toolbar", { role: "toolbar", "aria-label": "Picture" },
      this.windowButtons.element, this.level, this.layoutButtons.element,
      h("div.tools", {}, this.labelsButton, this.outlineButton, this.opacity), this.placeButton,
      h("label.beside", {}, icon("columns"), this.beside));
  }

  /** What can stand beside: `[{ value, text }]`, with one of them chosen. */
  setBeside(options, chosen = "") {
    this.beside.replaceChildren(h("option", { value: "" }, "Compare with …"), ...options.map(({ value, text }) => h("option", { value }, text)));
    this.beside.value = chosen;
  }

  /** Show one or two views `{ name, image, labels }` (paths); `told(share)` hears how much is loaded. */
  async show(views, told = () => {}) {
    const wanted = (this.wanted = Symbol("show"));
    const { Pane } = await import("./pane.js");
    const shares = new Map();
    const fetching = views.map((view, index) => bytesOf(view, (share) => {
      shares.set(index, share);
      told([...shares.values()].reduce((sum, each) => sum + each, 0) / views.length);
    }));
    const loaded = await Promise.all(fetching);
    const turn = (this.turn || Promise.resolve()).catch(() => {}).then(() => this.#present(Pane, views, loaded, wanted));
    this.turn = turn; // one after the other: what is decoded late would else lie under the name of what came after
    return turn;
  }

  async #present(Pane, views, loaded, wanted) {
    if (this.wanted !== wanted) return false;
    this.leavePlacing();
    while (this.panes.length > views.length) this.#dropPane();
    while (this.panes.length < views.length) this.#addPane(Pane);
    this.#suit(views.length);
    this.views = views;
    for (const [index, pane] of this.panes.entries()) {
      pane.layout = this.layout;
      pane.opacity = this.#opacity();
      await pane.show(loaded[index]);
      if (this.wanted !== wanted) return false;
      pane.setOutline(this.outline);
      
    }
    this.setWindow(this.window);
    this.placeButton.disabled = !this.panes.at(-1).isImage;
    this.labelsButton.disabled = this.outlineButton.disabled = this.opacity.disabled = !this.panes.some((pane) => pane.labels);
    return true;
  }

  /** Two results are compared in one large plane, unless another layout is chosen. */
  #suit(count) {
    if (count === 2 && this.grid.dataset.count !== "2" && this.layout === "all") [this.alone, this.layout] = [this.layout, "axial"];
    if (count === 1 && this.alone) [this.alone, this.layout] = [null, this.alone];
    this.grid.dataset.count = count;
    this.layoutButtons.set(this.layout);
  }

  #addPane(Pane) {
    const pane = new Pane({ onplace: (from, place) => this.#moved(from, place), onwindow: (low, high) => this.#windowed(low, high) });
    this.panes.push(pane);
    this.grid.append(pane.element);
  }

  #dropPane() {
    const pane = this.panes.pop();
    pane.element.remove();
    pane.close();
  }

  #moved(from, place) {
    if (this.moving) return;
    this.moving = true; // the others follow, and tell of it too
    for (const pane of this.panes) if (pane !== from) pane.goTo(place.mm);
    this.moving = false;
    const second = this.panes.length > 1 ? this.panes.map((pane) => pane.place?.hu) : [place.hu];
    const hu = second.filter((value) => value !== null && value !== undefined).map((value) => Math.round(value));
    this.place.replaceChildren(...sentence(place, hu));
    if (this.placing) this.placing.moved(from === this.panes.at(-1) ? place : this.panes.at(-1).place);
  }

  #windowed(low, high) {
    for (const pane of this.panes) if (pane.volume && pane.volume.cal_max !== high) pane.setWindow(low, high);
    this.windowButtons.set(null);
    this.#tellWindow(low, high);
  }

  #tellWindow(low, high) {
    this.level.textContent = `L ${Math.round((low + high) / 2)}  W ${Math.round(high - low)}`;
  }

  setWindow(name) {
    this.window = name;
    this.windowButtons.set(name);
    const [low, high] = rangeOf(WINDOWS[name]);
    for (const pane of this.panes) pane.setWindow(low, high);
    this.#tellWindow(low, high);
  }

  setLayout(layout) {
    this.alone = null;
    this.layout = layout;
    this.layoutButtons.set(layout);
    for (const pane of this.panes) pane.setLayout(layout);
  }

  toggleLabels() {
    this.#showLabels(!this.labelsOn);
    say(this.labelsOn ? "Labels shown" : "Labels hidden");
  }

  #showLabels(on) {
    this.labelsOn = on;
    press(this.labelsButton, on);
    for (const pane of this.panes) pane.setOpacity(this.#opacity());
  }

  #opacity() {
    return this.labelsOn ? Number(this.opacity.value) : 0;
  }

  toggleOutline() {
    this.outline = press(this.outlineButton) ? 1 : 0;
    for (const pane of this.panes) pane.setOutline(this.outline);
  }

  setHidden(hidden) {
    for (const pane of this.panes) pane.setHidden(hidden);
  }

  /** The crosshair to a place, else to the first tumour there is; else it stays in the middle. */
  begin(mm) {
    const pane = this.panes.at(-1);
    const tumour = [...pane.counts.keys()].find((id) => structure(id).tumour);
    if (mm) pane.goTo(mm);
    else if (tumour) pane.goTo(pane.whereIs(tumour));
  }

  goToStructure(id) {
    const pane = this.panes.at(-1);
    if (!pane?.counts.has(id)) return;
    pane.goTo(pane.whereIs(id));
    say(`Crosshair in ${structure(id).name}`);
  }

  startPlacing() {
    press(this.placeButton, true);
    this.placing = placePanel({
      marked: (ball) => this.panes.forEach((pane) => pane.setMarker(ball)),
      put: (request) => this.placed(this.views.at(-1), request),
      left: () => this.leavePlacing(),
    });
    this.foot.append(this.placing.element);
    const { place } = this.panes.at(-1);
    if (place) this.placing.moved(place);
    this.element.classList.add("placing");
    say("Click in the picture, or move the crosshair by the arrow keys, to say where the tumour is to be");
  }

  leavePlacing() {
    if (!this.placing) return;
    this.placing.element.remove();
    this.placing = null;
    press(this.placeButton, false);
    this.element.classList.remove("placing");
    this.panes.forEach((pane) => pane.setMarker(null));
  }

  #key(event) {
    const canvas = event.target.closest?.("canvas");
    if (!canvas || event.ctrlKey || event.metaKey || event.altKey) return;
    const pane = this.panes.find((each) => each.element.contains(canvas));
    const plane = this.layout === "coronal" ? [0, 2, 1] : this.layout === "sagittal" ? [1, 2, 0] : [0, 1, 2];
    const far = event.shiftKey ? 5 : 1;
    const moves = {
      ArrowLeft: [plane[0], far], ArrowRight: [plane[0], -far], // left is the patient's right, or front
      ArrowUp: [plane[1], far], ArrowDown: [plane[1], -far], PageUp: [plane[2], far], PageDown: [plane[2], -far],
    };
    const move = moves[event.key];
    if (move) pane.step(...move);
    else if (KEYS[event.key]) this.setWindow(KEYS[event.key]);
    else if (event.key === "l") this.toggleLabels();
    else if (event.key === "t") this.placing ? this.leavePlacing() : this.startPlacing();
    else if (event.key === "Escape" && this.placing) this.leavePlacing();
    else if (event.key === "Tab") return;
    event.stopPropagation();
    event.preventDefault();
  }
}

async function bytesOf({ image, labels, name }, told) {
  const parts = [0, 0];
  const hear = (index) => (share) => {
    parts[index] = share;
    told((parts[0] * 4 + parts[1]) / 5);
  };
  const [imageBytes, labelBytes] = await Promise.all([image && fetchBytes(image, hear(0)), labels && fetchBytes(labels, hear(1))]);
  return { image: imageBytes ?? null, labels: labelBytes ?? null, name };
}

function sentence({ mm, id }, hu) {
  const at = mm.map((value) => value.toFixed(1)).join("  ");
  const parts = [h("span.mm", {}, `${at} mm`)];
  if (hu.length) parts.push(h("span.hu", {}, `${hu.join(" | ")} HU`));
  if (id !== null) parts.push(h("span.structure", {}, id ? [h("span.swatch", { style: { "--colour": structure(id).colour } }), structure(id).name] : "unlabelled"));
  return parts;
}

function press(tool, on = tool.getAttribute("aria-pressed") !== "true") {
  tool.setAttribute("aria-pressed", String(on));
  return on;
}

/** Buttons of which one is on. */
function segmented(name, options, chosen) {
  const buttons = options.map(([value, text]) => h("button", { type: "button", "aria-pressed": "false", value, onclick: () => chosen(value) }, text));
  const set = (value) => buttons.forEach((each) => press(each, each.value === value));
  return { element: h("div.segmented", { role: "group", "aria-label": name }, buttons), set };
}
