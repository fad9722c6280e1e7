"use strict";

// Draws one mask over a viewer: a brush, an eraser, and a click that adds the region around it of similar values.
class HeparPen {
  constructor(viewer) {
    this.viewer = viewer;
    this.niivue = viewer.niivue;
    this.tool = "";
    this.size = 5;
    this.reachMm = 25;
    this.tolerance = 1.5; // standard deviations of the values around the click
    this.listeners = [];
    this.niivue.onDrawingChanged = (action) => {
      if (this.tool && action !== "load") this.changed = true;
      this.tell();
    };
    viewer.canvas.addEventListener("click", (event) => {
      if (this.tool === "grow" && viewer.isOnPlane(event)) this.grow(viewer.voxel, event.shiftKey);
    });
  }

  get open() {
    return Boolean(this.tool);
  }

  // Begin with the mask of a layer, which is hidden meanwhile.
  begin(layer) {
    this.layer = layer;
    const mask = this.viewer.masks.get(layer), colour = COLOURS[this.viewer.layers.find(({ name }) => name === layer).colour];
    this.wasVisible = this.viewer.layers.find(({ name }) => name === layer).visible;
    this.viewer.setVisible(layer, false);
    this.viewer.setWindowing(false);
    this.niivue.setDrawColormap({ R: [0, colour[0]], G: [0, colour[1]], B: [0, colour[2]], A: [0, 255], I: [0, 1], labels: ["", layer] });
    this.niivue.setDrawOpacity(this.viewer.fill);
    this.niivue.drawRimOpacity = 1;
    this.niivue.createEmptyDrawing();
    mask.img2RAS().forEach((value, index) => { this.niivue.drawBitmap[index] = value > 0 ? 1 : 0; });
    this.niivue.drawClearAllUndoBitmaps();
    this.niivue.drawAddUndoBitmap();
    this.niivue.refreshDrawing(true);
    this.changed = false;
    this.use("brush");
  }

  use(tool) {
    this.tool = tool;
    this.niivue.setDrawingEnabled(tool === "brush" || tool === "eraser");
    this.niivue.opts.penSize = this.size;
    this.niivue.setPenValue(tool === "eraser" ? 0 : 1, false);
    this.viewer.canvas.dataset.tool = tool;
    this.tell();
  }

  setSize(size) {
    this.size = Math.max(1, Math.min(31, size));
    this.niivue.opts.penSize = this.size;
    this.tell();
  }

  undo() {
    this.niivue.drawUndo();
    this.tell();
  }

  // Add the voxels that are connected to one, are similar to those around it, and lie within `reachMm`; or remove them.
  grow(start, remove = false) {
    const sizes = this.viewer.sizes, spacing = this.viewer.image.pixDimsRAS.slice(1, 4), bitmap = this.niivue.drawBitmap;
    const near = neighbourhood(start, sizes, 1).map((voxel) => this.viewer.value(voxel));
    const mean = near.reduce((sum, value) => sum + value, 0) / near.length;
    const { low, high } = this.viewer.window; // a flat region still has the noise that is told apart on the screen
    const spread = Math.max(Math.sqrt(near.reduce((sum, value) => sum + (value - mean) ** 2, 0) / near.length), (high - low) / 40);
    const similar = (voxel) => Math.abs(this.viewer.value(voxel) - mean) <= this.tolerance * spread;
    const within = (voxel) => Math.hypot(...voxel.map((at, axis) => (at - start[axis]) * spacing[axis])) <= this.reachMm;
    const index = ([x, y, z]) => x + sizes[0] * (y + sizes[1] * z);
    const seen = new Set([index(start)]), waiting = [start];
    while (waiting.length) {
      const voxel = waiting.pop();
      bitmap[index(voxel)] = remove ? 0 : 1;
      for (const next of faces(voxel, sizes)) {
        if (seen.has(index(next)) || !within(next) || !similar(next)) continue;
        seen.add(index(next));
        waiting.push(next);
      }
    }
    this.niivue.drawAddUndoBitmap();
    this.niivue.refreshDrawing(true);
    this.changed = true;
    this.tell();
  }

  get voxels() {
    return this.niivue.drawBitmap?.reduce((sum, value) => sum + (value > 0), 0) ?? 0;
  }

  // The drawing as the bytes of a NIfTI file on the grid of the scan.
  async bytes() {
    return this.niivue.saveImage({ filename: "", isSaveDrawing: true, volumeByIndex: 0 });
  }

  end() {
    this.tool = "";
    this.changed = false;
    this.niivue.setDrawingEnabled(false);
    this.niivue.closeDrawing();
    delete this.viewer.canvas.dataset.tool;
    if (this.viewer.masks.has(this.layer)) this.viewer.setVisible(this.layer, this.wasVisible);
    this.tell();
  }

  onChange(listener) {
    this.listeners.push(listener);
  }

  tell() {
    this.listeners.forEach((listener) => listener(this));
  }

  // B, E and G choose a tool, [ and ] its size, Z undoes, Enter grows at the crosshair. Returns whether it did.
  handleKey(event) {
    const actions = {
      b: () => this.use("brush"), e: () => this.use("eraser"), g: () => this.use("grow"), z: () => this.undo(),
      "[": () => this.setSize(this.size - 2), "]": () => this.setSize(this.size + 2),
      enter: () => this.grow(this.viewer.voxel, event.shiftKey),
    };
    const action = this.open && actions[event.key.toLowerCase()];
    if (action) action();
    return Boolean(action);
  }
}

function faces([x, y, z], sizes) {
  const around = [[x - 1, y, z], [x + 1, y, z], [x, y - 1, z], [x, y + 1, z], [x, y, z - 1], [x, y, z + 1]];
  return around.filter((voxel) => voxel.every((at, axis) => at >= 0 && at < sizes[axis]));
}

function neighbourhood([x, y, z], sizes, reach) {
  const found = [];
  for (let k = z - reach; k <= z + reach; k += 1) {
    for (let j = y - reach; j <= y + reach; j += 1) {
      for (let i = x - reach; i <= x + reach; i += 1) found.push([i, j, k]);
    }
  }
  return found.filter((voxel) => voxel.every((at, axis) => at >= 0 && at < sizes[axis]));
}
