// Three planes of a scan with its masks, for every page: `HeparViewer` shows, windows and outlines, `HeparLesions` goes
// from a table to its lesions. Needs page.js, and NiiVue once a viewer is made; pen.js draws.
// Voxels [x, y, z] count along NiiVue's axes to the right, to the front and to the head.
"use strict";

const CT_WINDOWS = [
  { name: "abdomen", low: -160, high: 240 },
  { name: "liver", low: -20, high: 180 },
  { name: "lung", low: -1350, high: 150 },
];
const COLOURS = { green: [74, 214, 129], blue: [90, 150, 255], orange: [255, 140, 60] };
const STEPS = {
  ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0],
  PageUp: [0, 0, 1], PageDown: [0, 0, -1],
};
const NIFTI_RGBA = 2304; // the datatype of four bytes a voxel
const NO_SHADER = { use: (gl) => gl.viewport(0, 0, 0, 0), uniforms: {} }; // draws nothing; NiiVue sets the viewport anew

function hasWebGl2() {
  return Boolean(document.createElement("canvas").getContext("webgl2"));
}

class HeparViewer {
  constructor(canvas) {
    this.canvas = canvas;
    this.layers = [];
    this.masks = new Map(); // volumes by the names of their layers
    this.fill = 0.25;
    this.presets = [];
    this.boxes = new Map(); // that show and hide layers, by the layer's name
    this.listeners = [];
    this.niivue = new niivue.Niivue({
      backColor: [0.04, 0.05, 0.06, 1],
      crosshairColor: [0.42, 0.66, 1, 0.7],
      crosshairWidthUnit: "voxels",
      crosshairWidth: 0.3,
      crosshairGap: 6,
      dragAndDropEnabled: false,
      dragMode: niivue.DRAG_MODE.windowing, // of the right button
      isOrientationTextVisible: true,
      isRadiologicalConvention: true, // the patient's right on the left of the screen
      multiplanarEqualSize: true,
      multiplanarLayout: niivue.MULTIPLANAR_TYPE.AUTO,
      multiplanarPadPixels: 6,
      multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
    });
    this.niivue.onLocationChange = () => this.tell();
    this.niivue.onIntensityChange = () => this.tell();
  }

  async attach() {
    await this.niivue.attachToCanvas(this.canvas);
    // gradients of the volume, for renderings that are never shown: most of the work where there is no GPU
    this.niivue.blurShader = this.niivue.sobelFirstOrderShader = NO_SHADER;
    this.niivue.setSliceType(this.niivue.sliceTypeMultiplanar);
  }

  // Load a scan and its masks. A layer is {name, url, colour, visible}, where a box of the layer outweighs `visible`;
  // `modality` chooses the windows, of CT those that lie within `range` if it is given, and `opensOn` names the layers by
  // which the first slices are chosen. Returns whether it is shown: if another scan is asked for meanwhile, only that one is.
  async show({ url, modality, layers, opensOn, range }) {
    const asked = this.asked = Symbol("scan");
    Object.assign(this, { layers: [], masks: new Map(), paint: null });
    this.niivue.volumes = [];
    this.niivue.drawScene(); // says that it waits for images
    const loaded = await Promise.all([
      loadVolume({ url, name: "image.nii.gz", colormap: "gray" }),
      ...layers.map((layer) => loadVolume({ url: layer.url, name: `${layer.name}.nii.gz` })),
    ]).catch((error) => { if (this.asked === asked) throw error; });
    if (this.asked !== asked) return false;
    const [image, ...masks] = loaded;
    this.codes = codesOf(masks);
    this.layers = layers.map((layer) => ({ ...layer, visible: this.boxes.get(layer.name)?.checked ?? layer.visible }));
    this.masks = new Map(masks.map((mask, index) => [layers[index].name, mask]));
    for (const [name, box] of this.boxes) box.disabled = !this.masks.has(name);
    this.paint = masks.length ? paintOn(masks[0]) : null;
    this.niivue.volumes = this.paint ? [image, this.paint] : [image];
    this.offer(modality === "CT" ? CT_WINDOWS.filter((preset) => within(preset, range)) : this.windowsOfMr());
    Object.assign(image, { cal_min: this.presets[0].low, cal_max: this.presets[0].high });
    this.fillPaint();
    this.niivue.setVolume(image); // draws all textures, once
    this.goToMostOf(opensOn);
    return true;
  }

  get image() {
    return this.niivue.volumes[0];
  }

  get sizes() {
    return this.image.dimsRAS.slice(1, 4);
  }

  // The lower and upper bound of the grey values that are told apart.
  get window() {
    return { low: this.image.cal_min, high: this.image.cal_max };
  }

  setWindow({ low, high }) {
    if (!this.image) return; // while a scan loads
    Object.assign(this.image, { cal_min: low, cal_max: high });
    this.redraw(this.image);
    this.tell();
  }

  // Draw the texture of one volume anew: that takes long in a large scan.
  redraw(volume) {
    if (volume === this.paint) this.niivue.gl.deleteTexture(this.niivue.overlayTexture); // NiiVue leaves it and makes a new one
    this.niivue.refreshLayers(volume, this.niivue.volumes.indexOf(volume));
    this.niivue.drawScene();
  }

  // Offer these windows, by buttons if there are controls.
  offer(presets) {
    this.presets = presets;
    this.buttons = presets.map((preset, index) => {
      const button = make("button", { type: "button", title: `Key ${index + 1}` }, preset.name, " ", make("kbd", {}, String(index + 1)));
      button.addEventListener("click", () => this.setWindow(preset));
      return button;
    });
    this.windows?.replaceChildren(...this.buttons);
  }

  // MR has no unit: the window around the liver is its median and eight robust standard deviations to both sides.
  windowsOfMr() {
    const values = sample(this.image.img, 50_000), scaled = (value) => this.image.intensityRaw2Scaled(value);
    const whole = { name: "whole", low: scaled(quantile(values, 0.01)), high: scaled(quantile(values, 0.995)) };
    const mask = this.masks.get("liver");
    const inside = mask ? sample(this.image.img.filter((_, index) => mask.img[index] > 0), 50_000) : [];
    if (!inside.length) return [whole];
    const median = quantile(inside, 0.5);
    const reach = 8 * 1.4826 * quantile(inside.map((value) => Math.abs(value - median)), 0.5);
    return reach ? [{ name: "liver", low: scaled(median - reach), high: scaled(median + reach) }, whole] : [whole];
  }

  // Left-drag changes the window while this is on; right-drag always does.
  setWindowing(on) {
    this.niivue.opts.dragModePrimary = on ? niivue.DRAG_MODE.windowing : niivue.DRAG_MODE.crosshair;
    this.windowing = on;
    this.tell();
  }

  setVisible(name, visible) {
    const layer = this.layers.find((item) => item.name === name);
    if (!layer) return;
    layer.visible = visible;
    this.repaint();
  }

  // How opaque masks are within their outlines, 0…1.
  setFill(fill) {
    this.fill = fill;
    this.repaint();
    this.niivue.setDrawOpacity(fill);
  }

  repaint() {
    if (!this.paint) return;
    this.fillPaint();
    this.redraw(this.paint);
  }

  // All masks are one volume of colours, so that there is one texture to draw, however many they are.
  fillPaint() {
    if (!this.paint) return;
    const colours = coloursOf(this.layers, this.fill), painted = new Uint32Array(this.paint.img.buffer);
    for (let at = 0; at < painted.length; at += 1) painted[at] = colours[this.codes[at]];
  }

  // Go to the axial slice with most of the first layer that is not empty.
  goToMostOf(names) {
    for (const name of names) {
      const mask = this.masks.get(name);
      const voxel = mask && fullest(mask.img2RAS(), mask.dimsRAS);
      if (voxel) return this.goTo(voxel);
    }
    return this.goTo(this.sizes.map((size) => Math.floor(size / 2)));
  }

  // Whether an event of the mouse lies on the scan in one of the planes, and so moved the crosshair there.
  isOnPlane({ offsetX, offsetY }) {
    const { dpr } = this.niivue.uiData;
    return this.niivue.canvasPos2frac([offsetX * dpr, offsetY * dpr])[0] >= 0;
  }

  get voxel() {
    return [...this.niivue.frac2vox(this.niivue.scene.crosshairPos)].map(Math.round);
  }

  goTo(voxel) {
    this.niivue.scene.crosshairPos = this.niivue.vox2frac(voxel);
    this.niivue.createOnLocationChange();
    this.niivue.drawScene();
    this.tell();
  }

  // A place in the patient: millimetres to the left, to the back and to the head, as DICOM counts them.
  goToLps([left, back, head]) {
    if (!this.image) return; // while a scan loads
    this.goTo([...this.image.mm2vox([-left, -back, head])]); // NiiVue's mm2frac leaves out how the scan is rotated
  }

  step([x, y, z]) {
    this.goTo(this.voxel.map((at, axis) => Math.max(0, Math.min(this.sizes[axis] - 1, at + [x, y, z][axis]))));
  }

  value([x, y, z]) {
    return this.image.getValue(x, y, z);
  }

  // Call `listener` whenever place, value or window change.
  onChange(listener) {
    this.listeners.push(listener);
  }

  tell() {
    if (this.niivue.volumes.length) this.listeners.forEach((listener) => listener(this));
  }

  // Arrows and page keys move the crosshair, digits choose a window, W makes dragging change it, and the key of a layer
  // shows or hides it. Returns whether it did.
  handleKey(event) {
    if (!this.niivue.volumes.length) return false;
    const layer = this.layers.find(({ key }) => key === event.key.toLowerCase()), box = layer && this.boxes.get(layer.name);
    if (STEPS[event.key]) this.step(STEPS[event.key]);
    else if (this.presets[Number(event.key) - 1]) this.setWindow(this.presets[Number(event.key) - 1]);
    else if (event.repeat) return false;
    else if (event.key.toLowerCase() === "w") this.setWindowing(!this.windowing);
    else if (box) box.click();
    else return false;
    return true;
  }

  // Fill an element with the window presets, the opacity of masks, a box for each layer, and where the crosshair is.
  addControls(parent, layers) {
    this.windows = make("span", { className: "windows" });
    const drag = make("button", { type: "button", title: "Drag with the left button to change the window (key W)" },
      "drag to window ", make("kbd", {}, "W"));
    const fill = make("input", { type: "range", min: 0, max: 100, value: 100 * this.fill, id: "fill", ariaLabel: "Opacity of masks" });
    const place = make("output", { className: "place" });
    drag.addEventListener("click", () => this.setWindowing(!this.windowing));
    fill.addEventListener("input", () => this.setFill(fill.value / 100));
    const boxes = layers.map((layer) => {
      const box = make("input", { type: "checkbox", id: `show-${layer.name}`, checked: layer.visible });
      box.addEventListener("change", () => this.setVisible(layer.name, box.checked));
      this.boxes.set(layer.name, box);
      const swatch = make("span", { className: "swatch" });
      swatch.style.background = `rgb(${COLOURS[layer.colour]})`;
      return make("label", {}, box, swatch, layer.label, layer.key ? make("kbd", {}, layer.key.toUpperCase()) : "");
    });
    parent.replaceChildren(
      make("div", { className: "viewer-controls" }, this.windows, drag, make("label", {}, "fill ", fill), ...boxes, place));
    this.onChange(() => {
      const [x, y, z] = this.voxel, { low, high } = this.window;
      this.presets.forEach((preset, index) => (
        this.buttons[index].setAttribute("aria-pressed", String(low === preset.low && high === preset.high))));
      drag.setAttribute("aria-pressed", String(Boolean(this.windowing)));
      place.textContent = `x ${x} y ${y} z ${z}: ${shown(this.value([x, y, z]))}  ·  window ${shown(low)} to ${shown(high)}`;
    });
  }
}

// The rows of a table of lesions, which lead to their places: millimetres as DICOM counts them.
class HeparLesions {
  constructor(viewer) {
    this.viewer = viewer;
    this.show([], []);
  }

  show(rows, places) {
    Object.assign(this, { rows, places, at: -1 });
    rows.forEach((row, index) => row.addEventListener("click", () => this.goTo(index)));
  }

  goTo(index) {
    if (!this.rows.length) return;
    this.at = (index + this.rows.length) % this.rows.length;
    this.viewer.goToLps(this.places[this.at]);
    this.rows.forEach((row, at) => row.setAttribute("aria-current", String(at === this.at)));
  }

  // N goes to the next lesion. Returns whether it did.
  handleKey(event) {
    if (event.key.toLowerCase() !== "n") return false;
    this.goTo(this.at + 1);
    return true;
  }
}

function within(preset, range) {
  return !range || (preset.low >= range.low && preset.high <= range.high);
}

function loadVolume(options) {
  return niivue.NVImage.loadFromUrl(options);
}

// What each voxel is of masks on one grid, in stored order: for mask n it adds 3 ** n inside, twice that on the edge, which
// are the voxels that have a neighbour outside in their stored plane.
function codesOf(masks) {
  if (!masks.length) return new Uint8Array();
  const { hdr, img: { length } } = masks[0], [, columns, rows] = hdr.dims, codes = new Uint8Array(length);
  masks.forEach((mask, index) => {
    if (!isSameGrid(mask, masks[0])) throw new Error("The masks lie on different grids.");
    const { img } = mask, inside = 3 ** index;
    for (let at = 0, x = 0, y = 0; at < length; at += 1) {
      if (img[at] > 0) {
        const enclosed = x > 0 && x < columns - 1 && y > 0 && y < rows - 1
          && img[at - 1] > 0 && img[at + 1] > 0 && img[at - columns] > 0 && img[at + columns] > 0;
        codes[at] += enclosed ? inside : 2 * inside;
      }
      if ((x += 1) === columns) [x, y] = [0, (y + 1) % rows];
    }
  });
  return codes;
}

function isSameGrid(one, other) {
  return one.hdr.dims.slice(1, 4).every((size, axis) => size === other.hdr.dims[axis + 1])
    && one.hdr.affine.flat().every((value, at) => Math.abs(value - other.hdr.affine.flat()[at]) < 0.01);
}

// The colour of each code, as the four bytes of an integer: the fills of visible layers over each other, then the edges.
function coloursOf(layers, fill) {
  return Uint32Array.from({ length: 3 ** layers.length }, (_, code) => {
    const shown = layers.map((layer, index) => ({ ...layer, at: Math.floor(code / 3 ** index) % 3 })).filter(({ visible }) => visible);
    const strokes = [
      ...shown.filter(({ at }) => at > 0).map(({ colour }) => [COLOURS[colour], fill]),
      ...shown.filter(({ at }) => at === 2).map(({ colour }) => [COLOURS[colour], 1]),
    ];
    let below = [0, 0, 0], alpha = 0;
    for (const [colour, opacity] of strokes) {
      const total = opacity + alpha * (1 - opacity) || 1;
      below = below.map((value, channel) => (colour[channel] * opacity + value * alpha * (1 - opacity)) / total);
      alpha = opacity + alpha * (1 - opacity);
    }
    return new DataView(Uint8Array.from([...below, 255 * alpha], Math.round).buffer).getUint32(0, true);
  });
}

// A volume of colours on the grid of a mask.
function paintOn(mask) {
  const paint = mask.clone();
  Object.assign(paint.hdr, { datatypeCode: NIFTI_RGBA, numBitsPerVoxel: 32, scl_slope: 1, scl_inter: 0 });
  return Object.assign(paint, { name: "masks.nii.gz", img: new Uint8Array(4 * mask.img.length) });
}

// The voxel of a mask nearest to the middle of its slice with most voxels; null for an empty mask.
function fullest(mask, [, columns, rows, slices]) {
  const area = columns * rows, counts = new Array(slices).fill(0);
  for (let at = 0; at < mask.length; at += 1) if (mask[at] > 0) counts[Math.floor(at / area)] += 1;
  const z = counts.indexOf(Math.max(...counts)), places = [];
  if (!counts[z]) return null;
  for (let at = z * area; at < (z + 1) * area; at += 1) {
    if (mask[at] > 0) places.push([(at - z * area) % columns, Math.floor((at - z * area) / columns), z]);
  }
  const middle = [0, 1].map((axis) => places.reduce((sum, place) => sum + place[axis], 0) / places.length);
  const far = ([x, y]) => (x - middle[0]) ** 2 + (y - middle[1]) ** 2;
  return places.reduce((best, place) => (far(place) < far(best) ? place : best));
}

function sample(values, count) {
  const step = Math.max(1, Math.floor(values.length / count));
  return Array.from({ length: Math.floor(values.length / step) }, (_, index) => values[index * step]);
}

function quantile(values, share) {
  const sorted = [...values].sort((one, other) => one - other);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}
