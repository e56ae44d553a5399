// One result in NiiVue: three planes on one canvas, its structures or bones in 3-D on another, a crosshair for both.

import { button, h, svg } from "../dom.js";
import { isEverywhere, structure } from "../vocabulary.js";
import { Niivue, NVImage, DRAG_MODE, SLICE_TYPE } from "../vendor/niivue.js";
import { rangeOf } from "./windows.js";

const { AXIAL, CORONAL, SAGITTAL, RENDER } = SLICE_TYPE;
const TILES = {
  all: [[AXIAL, [0, 0, 0.5, 0.5]], [CORONAL, [0.5, 0, 0.5, 0.5]], [SAGITTAL, [0, 0.5, 0.5, 0.5]]],
  axial: [[AXIAL, [0, 0, 1, 1]]],
  coronal: [[CORONAL, [0, 0, 1, 1]]],
  sagittal: [[SAGITTAL, [0, 0, 1, 1]]],
  solid: [],
};
const NAMES = { [AXIAL]: "Axial", [CORONAL]: "Coronal", [SAGITTAL]: "Sagittal" };
const LOOK = {
  backColor: [0, 0, 0, 1],
  crosshairColor: [0.44, 0.78, 0.87, 0.55],
  crosshairWidthUnit: "mm",
  crosshairGap: 8,
  fontColor: [0.62, 0.68, 0.72, 1],
  fontMinPx: 10,
  fontSizeScaling: 0.1,
  isOrientationTextVisible: true,
  isCornerOrientationText: false,
  isSliceMM: true,
  isRadiologicalConvention: true, // the patient's right is on the left
  sagittalNoseLeft: true,
  dragMode: DRAG_MODE.windowing,
  dragAndDropEnabled: false,
  clipPlaneHotKey: "",
  cycleClipPlaneHotKey: "",
  viewModeHotKey: "",
  logLevel: "silent",
  loadingText: "",
  tileMargin: 0,
};
const HAIR = 1 / 240; // of the field of view
const SLOW_MS = 250;
const COARSE = 0.4; // points of the canvas for one of the screen
const IS_LABELS = 1002; // NIFTI_INTENT_LABEL: NiiVue then looks colours up by the very id
const BONES = { level: 260, width: 280 };

/** A pane; `onplace({ mm, hu, id })` hears where its crosshair goes, `onclick(mm)` where it is clicked. */
export class Pane {
  constructor({ onplace, onwindow }) {
    this.onplace = onplace;
    this.onwindow = onwindow;
    this.hidden = new Set();
    this.layout = "all";
    this.look = "structures";
    this.opacity = 0.55;
    this.marker = null;
    this.planesCanvas = h("canvas.planes", { tabIndex: 0, role: "img" });
    this.solidCanvas = h("canvas.solid", { tabIndex: 0, role: "img" });
    this.lookButton = button("cube", "Bones", () => this.setLook(this.look === "bones" ? "structures" : "bones"), { kind: "look", "aria-pressed": "false" });
    this.overlay = svg("svg", { class: "overlay", "aria-hidden": "true" });
    this.caption = h("p.caption", {});
    this.element = h("div.pane", {}, h("div.planes-box", {}, this.planesCanvas), h("div.solid-box", {}, this.solidCanvas, this.lookButton), this.overlay, this.caption);
  }

  /** Show bytes of an image and of its labels (either may be null). */
  async show({ image, labels, name }) {
    await this.#attach();
    this.planes.held = true;
    this.name = name;
    this.caption.textContent = name;
    this.bytes = { image, labels };
    this.isImage = Boolean(image);
    this.lookButton.hidden = !(image && labels);
    this.volume = await NVImage.loadFromUrl({ url: image ?? labels, name: "image.nii.gz", trustCalMinMax: false });
    this.labels = labels && image ? await NVImage.loadFromUrl({ url: labels, name: "labels.nii.gz", opacity: this.opacity }) : null;
    this.map = this.labels ?? (labels ? this.volume : null);
    this.ids = this.map ? Uint8Array.from(this.map.img) : null;
    this.counts = this.ids ? countsOf(this.ids) : new Map();
    this.hidden = new Set([...this.counts.keys()].filter(isEverywhere));
    this.planes.opts.crosshairWidth = this.#hair();
    for (const each of [...this.planes.volumes]) this.planes.removeVolume(each);
    if (image) this.planes.addVolume(this.volume);
    if (this.map) this.planes.addVolume(this.#coloured(this.map));
    this.planes.held = false;
    this.stale = true;
    await this.setLayout(this.layout);
    this.#describe();
    this.middle();
  }

  #hair() {
    const { dims, pixDims } = this.volume.hdr;
    return HAIR * Math.max(...[1, 2, 3].map((axis) => dims[axis] * pixDims[axis]));
  }

  async #attach() {
    if (this.planes) return;
    this.planes = new Niivue({ ...LOOK, onLocationChange: (place) => this.#placed(place) });
    holdable(this.planes, () => this.#drawOverlay());
    await this.planes.attachToCanvas(this.planesCanvas);
    this.planes.onIntensityChange = (volume) => this.onwindow?.(volume.cal_min, volume.cal_max);
    this.planes.setInterpolation(false);
  }

  /** The picture in 3-D is made when it is first seen. */
  async #showSolid() {
    if (!this.stale || !this.bytes) return;
    this.stale = false;
    if (!this.solid) {
      this.slow = isSoftware(this.planes.gl);
      this.solid = new Niivue({ ...LOOK, show3Dcrosshair: true, sliceType: RENDER, forceDevicePixelRatio: this.slow ? COARSE : 0 });
      holdable(this.solid);
      this.solid.held = true;
      await this.solid.attachToCanvas(this.solidCanvas);
      [this.solid.scene.renderAzimuth, this.solid.scene.renderElevation] = [200, 12];
    }
    const { image, labels } = this.bytes;
    const bytes = this.look === "bones" && image ? image : labels ?? image;
    this.solid.held = true;
    for (const each of [...this.solid.volumes]) this.solid.removeVolume(each);
    this.solid.opts.crosshairWidth = this.#hair();
    this.solidVolume = await NVImage.loadFromUrl({ url: bytes, name: "solid.nii.gz", trustCalMinMax: false });
    this.solid.addVolume(bytes === labels ? this.#coloured(this.solidVolume) : this.#boneLook(this.solidVolume));
    await this.solid.setVolumeRenderIllumination(bytes === labels ? 0.6 : 0.25);
    if (this.place) this.solid.scene.crosshairPos = this.solid.mm2frac(this.place.mm);
    this.solid.held = false;
    this.#drawSolid();
  }

  #boneLook(volume) {
    volume.colormap = "ct_bones";
    [volume.cal_min, volume.cal_max] = rangeOf(BONES);
    return volume;
  }

  /** `structures` or `bones` in 3-D. */
  async setLook(look) {
    this.look = look;
    this.lookButton.setAttribute("aria-pressed", String(look === "bones"));
    this.stale = true;
    await this.#showSolid();
  }

  /** A map with the colours of its ids; what is hidden becomes background, so that it has no outline either. */
  #coloured(volume) {
    const most = Math.max(0, ...this.counts.keys());
    const ids = Array.from({ length: most + 1 }, (_, id) => id);
    const [R, G, B] = [0, 1, 2].map((part) => ids.map((id) => rgb(structure(id).colour)[part]));
    volume.hdr.intent_code = IS_LABELS;
    volume.setColormapLabel({ R, G, B, A: ids.map((id) => (id ? 255 : 0)), I: ids, labels: ids.map((id) => (id ? structure(id).name : "")) });
    const shown = Uint8Array.from({ length: 256 }, (_, id) => (this.hidden.has(id) ? 0 : id));
    for (let index = 0; index < this.ids.length; index++) volume.img[index] = shown[this.ids[index]];
    return volume;
  }

  /** Hide and show structures by their ids. */
  setHidden(hidden) {
    this.hidden = hidden;
    if (!this.map) return;
    this.#coloured(this.map);
    this.planes.updateGLVolume();
    if (!this.solidVolume?.colormapLabel || this.stale) return;
    this.#coloured(this.solidVolume);
    this.solid.updateGLVolume();
  }

  setOpacity(opacity) {
    this.opacity = opacity;
    const index = this.planes?.volumes.indexOf(this.labels);
    if (index > 0) this.planes.setOpacity(index, opacity);
  }

  setOutline(width) {
    this.planes?.setAtlasOutline(width);
  }

  setWindow(low, high) {
    if (!this.isImage) return;
    [this.volume.cal_min, this.volume.cal_max] = [low, high];
    this.planes.updateGLVolume();
  }

  async setLayout(layout) {
    this.layout = layout;
    this.element.dataset.layout = layout;
    if (!this.bytes) return;
    const tiles = TILES[layout].map(([sliceType, position]) => ({ sliceType, position }));
    if (tiles.length) this.planes.setCustomLayout(tiles);
    this.planes.resizeListener();
    if (!this.#solidIsSeen()) return;
    this.solid?.resizeListener();
    await this.#showSolid();
  }

  /** The crosshair to the middle of the volume. */
  middle() {
    this.#moveTo([0.5, 0.5, 0.5]);
  }

  /** The crosshair to a place in mm (RAS). */
  goTo(mm) {
    if (this.planes?.volumes.length) this.#moveTo([...this.planes.mm2frac([...mm])]);
  }

  step(axis, voxels) {
    const move = [0, 0, 0];
    move[axis] = voxels;
    this.planes.moveCrosshairInVox(...move);
  }

  #moveTo(fraction) {
    this.planes.scene.crosshairPos = fraction;
    this.planes.drawScene();
    this.planes.createOnLocationChange();
  }

  /** Where a structure is: the voxel of it that is nearest to its middle, in mm. */
  whereIs(id) {
    const { ids: img } = this;
    const [, nx, ny] = this.map.hdr.dims;
    const at = (index) => [index % nx, Math.floor(index / nx) % ny, Math.floor(index / (nx * ny))];
    const sum = [0, 0, 0, 0];
    for (let index = 0; index < img.length; index++) if (img[index] === id) at(index).forEach((value, axis) => (sum[axis] += value)), sum[3]++;
    const middle = sum.slice(0, 3).map((value) => value / sum[3]);
    let [nearest, least] = [0, Infinity];
    for (let index = 0; index < img.length; index++) {
      if (img[index] !== id) continue;
      const distance = at(index).reduce((total, value, axis) => total + (value - middle[axis]) ** 2, 0);
      if (distance < least) [nearest, least] = [index, distance];
    }
    return mmOf(this.map.hdr.affine, at(nearest));
  }

  #placed({ mm, values }) {
    if (![...mm].slice(0, 3).every(Number.isFinite)) return this.place && this.goTo(this.place.mm); // beside the picture
    const of = (volume) => values[this.planes.volumes.indexOf(volume)]?.value;
    this.place = { mm: [...mm].slice(0, 3), hu: this.isImage ? of(this.volume) : null, id: this.map ? this.#idAt(mm) : null };
    this.#followSolid(mm);
    this.onplace(this, this.place);
  }

  #idAt(mm) {
    const [, nx, ny, nz] = this.map.hdr.dims;
    const [x, y, z] = this.map.mm2vox([...mm].slice(0, 3));
    const isInside = x >= 0 && y >= 0 && z >= 0 && x < nx && y < ny && z < nz;
    return isInside ? this.ids[x + nx * (y + ny * z)] : 0;
  }

  #followSolid(mm) {
    if (!this.solid?.volumes.length) return;
    this.solid.scene.crosshairPos = this.solid.mm2frac([...mm].slice(0, 3));
    clearTimeout(this.later);
    if (this.#solidIsSeen()) this.later = setTimeout(() => this.#drawSolid(), this.slow ? 350 : 30);
  }

  #solidIsSeen() {
    return this.layout === "all" || this.layout === "solid";
  }

  /** Draw in 3-D; where that turns out to be slow, from then on in fewer points. */
  #drawSolid() {
    if (!this.solid || this.solid.held) return;
    const start = performance.now();
    this.solid.drawScene();
    const { gl } = this.solid;
    gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4)); // waits until all is drawn
    if (this.slow || performance.now() - start < SLOW_MS) return;
    this.slow = true;
    this.solid.setHighResolutionCapable(COARSE);
  }

  /** A ball that is drawn where a lesion will be: `{ mm, diameter }` or null. */
  setMarker(marker) {
    this.marker = marker;
    this.#drawOverlay();
  }

  #drawOverlay() {
    const scale = 1 / (this.planes.uiData.dpr || 1);
    const shown = ({ axCorSag, leftTopWidthHeight }) => axCorSag in NAMES && leftTopWidthHeight[2] !== 0; // else not laid out yet
    const tiles = this.layout === "solid" ? [] : this.planes.screenSlices.filter(shown);
    this.overlay.replaceChildren(...tiles.flatMap((tile) => [this.#tileName(tile, scale), ...this.#ball(tile, scale)]));
  }

  #tileName(tile, scale) {
    const [[, [left, top]]] = TILES[this.layout].filter(([type]) => type === tile.axCorSag);
    const { clientWidth, clientHeight } = this.planesCanvas;
    const text = svg("text", { class: "tile-name", x: left * clientWidth + 10, y: top * clientHeight + 20 });
    text.textContent = NAMES[tile.axCorSag];
    return text;
  }

  #ball(tile, scale) {
    if (!this.marker) return [];
    const [across, up, depth] = { [AXIAL]: [0, 1, 2], [CORONAL]: [0, 2, 1], [SAGITTAL]: [1, 2, 0] }[tile.axCorSag];
    const { mm, diameter } = this.marker;
    const here = this.place?.mm ?? mm;
    const radius2 = (diameter / 2) ** 2 - (here[depth] - mm[depth]) ** 2;
    if (radius2 <= 0) return [];
    const [left, top, width, height] = tile.leftTopWidthHeight.map((value) => value * scale);
    const x = left + ((mm[across] - tile.leftTopMM[0]) / tile.fovMM[0]) * width;
    const y = top + height - ((mm[up] - tile.leftTopMM[1]) / tile.fovMM[1]) * height;
    const r = (Math.sqrt(radius2) / Math.abs(tile.fovMM[0])) * Math.abs(width);
    return [svg("circle", { class: "ball", cx: x, cy: y, r })];
  }

  #describe() {
    const found = this.counts.size ? `, ${this.counts.size} structures` : "";
    this.planesCanvas.setAttribute("aria-label", `${this.name}, three planes${found}. Arrow keys move the crosshair, page up and down change the slice.`);
    this.solidCanvas.setAttribute("aria-label", `${this.name} in 3-D; drag to turn.`);
  }

  /** Give the graphics memory back. */
  close() {
    for (const each of [this.planes, this.solid]) {
      each?.cleanup();
      each?.gl?.getExtension("WEBGL_lose_context")?.loseContext();
    }
    this.planes = this.solid = this.bytes = null;
  }
}

/** Let `viewer.held` put off drawing, and hear of each that is done. */
function holdable(viewer, drawn = () => {}) {
  const draw = viewer.drawScene.bind(viewer);
  viewer.drawScene = (...given) => {
    if (viewer.held) return;
    draw(...given);
    drawn();
  };
}

/** Whether the processor draws, for want of a graphics card. */
function isSoftware(gl) {
  const info = gl.getExtension("WEBGL_debug_renderer_info");
  return /swiftshader|llvmpipe|softpipe|software/i.test(info ? gl.getParameter(info.UNMASKED_RENDERER_WEBGL) : "");
}

function countsOf(ids) {
  const found = new Uint32Array(256);
  for (const id of ids) found[id]++;
  return new Map([...found].map((count, id) => [id, count]).filter(([id, count]) => id && count));
}

function rgb(colour) {
  const value = Number.parseInt(colour.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

const mmOf = (affine, voxel) => [0, 1, 2].map((row) => affine[row][3] + voxel.reduce((sum, value, axis) => sum + affine[row][axis] * value, 0));
