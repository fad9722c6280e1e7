// The queue on the left, one case in three planes on the right. The server saves a decision before the page shows it.
"use strict";

const byId = (id) => document.getElementById(id);
const LAYERS = [
  { name: "liver", colormap: "green", opacity: 0.45, box: "show-liver", key: "m" },
  { name: "uncertain", colormap: "blue", opacity: 0.5, box: "show-uncertain", key: "u" },
  { name: "tumour", colormap: "red", opacity: 0.6, box: "show-tumour", key: "t" },
];
const VERDICTS = { accept: "accepted", review: "for review", reject: "rejected" };
const DECISIONS = { accept: "accepted", reject: "rejected", correct: "corrected" };

let cases = [];
let current = null;
let busy = false;
const viewer = new niivue.Niivue({
  backColor: [0, 0, 0, 1],
  crosshairColor: [0.42, 0.66, 1, 0.8],
  crosshairWidthUnit: "voxels",
  crosshairWidth: 0.3,
  dragAndDropEnabled: false,
  isRadiologicalConvention: true, // the patient's right on the left of the screen
  multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
});

async function fetchJson(path, options) {
  const response = await fetch(path, options);
  const body = await response.json();
  if (!response.ok) throw new Error(body.error);
  return body;
}

function showMessage(text, isError = false) {
  byId("message").textContent = text;
  byId("message").classList.toggle("error", isError);
}

function element(tag, text, className = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  node.className = className;
  return node;
}

function showQueue() {
  const open = cases.filter((item) => !item.decision).length;
  byId("count").textContent = `${open} of ${cases.length} left to review`;
  byId("cases").replaceChildren(...cases.map((item) => {
    const button = element("button", "");
    button.dataset.case = item.case_id;
    button.setAttribute("aria-current", String(item === current));
    button.append(element("span", item.case_id), element("span", item.gate, `gate ${item.gate}`));
    if (item.decision) {
      const { decision, who } = item.decision;
      button.append(element("span", `${DECISIONS[decision]} by ${who}`, `done ${decision}`));
    }
    button.addEventListener("click", () => show(item));
    const line = document.createElement("li");
    line.append(button);
    return line;
  }));
}

function showFacts(item) {
  for (const [id, name] of [["get-image", "image"], ["get-mask", maskOf(item, LAYERS[0])]]) {
    byId(id).href = `files/${encodeURIComponent(item.case_id)}/${name}.nii.gz`;
    byId(id).download = `${item.case_id}-${name}.nii.gz`;
  }
  byId("title").textContent = `${item.case_id}, ${[item.modality, item.sequence, item.source].filter(Boolean).join(", ")}`;
  byId("verdict").textContent = `Gates: ${VERDICTS[item.gate]}.` +
    (item.decision ? ` Review: ${DECISIONS[item.decision.decision]} by ${item.decision.who}, ${item.decision.when}.` : "");
  const reasons = item.reasons.length ? item.reasons : ["passes every gate"];
  byId("reasons").replaceChildren(...reasons.map((reason) => element("li", reason)));
  byId("signals").replaceChildren(...Object.entries(item.signals).flatMap(([name, value]) => [
    element("dt", name.replaceAll("_", " ")), element("dd", value >= 100 ? value.toFixed(0) : value.toFixed(3)),
  ]));
}

function maskOf(item, layer) {
  const corrected = layer.name === "liver" && item.decision?.decision === "correct";
  return corrected ? "corrected" : layer.name;
}

let loading = Promise.resolve(); // one case after the other, so that their volumes do not mix

function show(item) {
  current = item;
  delete byId("view").dataset.shown;
  showQueue();
  showFacts(item);
  loading = loading.then(() => (current === item ? load(item) : undefined));
  return loading;
}

async function load(item) {
  showMessage("Loading the volume…");
  const folder = `files/${encodeURIComponent(item.case_id)}`;
  const image = { url: `${folder}/image.nii.gz`, name: "image.nii.gz", colormap: "gray" };
  if (item.window) [image.cal_min, image.cal_max] = item.window;
  const layers = LAYERS.filter((layer) => item.files.includes(layer.name));
  const masks = layers.map((layer) => ({
    url: `${folder}/${maskOf(item, layer)}.nii.gz`, name: `${layer.name}.nii.gz`, colormap: layer.colormap,
    opacity: byId(layer.box).checked ? layer.opacity : 0, cal_min: 0, cal_max: 1,
  }));
  try {
    await viewer.loadVolumes([image, ...masks]);
  } catch (error) {
    showMessage(`The volume cannot be displayed: ${error.message}`, true);
    return;
  }
  if (current !== item) return; // another case was selected while this one loaded
  for (const layer of LAYERS) byId(layer.box).disabled = !layers.includes(layer);
  goToLiver(1);
  showMessage("");
  byId("view").dataset.shown = item.case_id;
}

// Move the crosshair to the centre of the liver, so that all three planes show it.
function goToLiver(index) {
  const mask = viewer.volumes[index];
  if (!mask) return;
  const [, columns, rows] = mask.hdr.dims;
  let sums = [0, 0, 0], count = 0;
  for (let i = 0; i < mask.img.length; i += 1) {
    if (mask.img[i] > 0) {
      sums[0] += i % columns;
      sums[1] += Math.floor(i / columns) % rows;
      sums[2] += Math.floor(i / (columns * rows));
      count += 1;
    }
  }
  if (!count) return;
  viewer.scene.crosshairPos = viewer.vox2frac(sums.map((sum) => Math.round(sum / count)));
  viewer.drawScene();
}

function setLayer(layer) {
  const index = viewer.volumes.findIndex((volume) => volume.name === `${layer.name}.nii.gz`);
  if (index > 0) viewer.setOpacity(index, byId(layer.box).checked ? layer.opacity : 0);
}

async function save(path, options, afterwards) {
  if (busy || !current) return;
  if (byId("view").dataset.shown !== current.case_id) {
    showMessage("Wait until the volume is displayed", true);
    return;
  }
  busy = true;
  try {
    const saved = await fetchJson(`api/cases/${encodeURIComponent(current.case_id)}/${path}`, { method: "POST", ...options });
    current = cases[cases.findIndex((item) => item.case_id === saved.case_id)] = saved;
    showQueue();
    showFacts(saved);
    await afterwards();
  } catch (error) {
    showMessage(error.message, true);
  } finally {
    busy = false;
  }
}

function next() {
  const at = cases.indexOf(current);
  const later = [...cases.slice(at + 1), ...cases.slice(0, at)];
  const item = later.find((other) => !other.decision) ?? later[0];
  if (!item) return Promise.resolve();
  return show(item);
}

const accept = () => save("accept", {}, next);
const reject = () => save("reject", {}, next);

async function upload() {
  const [file] = byId("upload").files;
  if (!file) return;
  const form = new FormData();
  form.append("mask", file);
  byId("upload").value = "";
  await save("mask", { body: form }, () => show(current));
}

async function start() {
  history.replaceState(null, "", location.pathname); // the cookie holds the token: hide it from the address bar
  byId("accept").addEventListener("click", accept);
  byId("reject").addEventListener("click", reject);
  byId("next").addEventListener("click", next);
  byId("upload").addEventListener("change", upload);
  for (const layer of LAYERS) byId(layer.box).addEventListener("change", () => setLayer(layer));
  document.addEventListener("keydown", (event) => {
    if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    const action = { a: accept, r: reject, n: next }[key];
    const layer = LAYERS.find((item) => item.key === key);
    if (action) action();
    else if (layer && !byId(layer.box).disabled) {
      byId(layer.box).checked = !byId(layer.box).checked;
      setLayer(layer);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }, true);
  cases = await fetchJson("api/cases");
  if (!cases.length) {
    byId("title").textContent = "No pseudo-livers to review";
    byId("count").textContent = "";
    return;
  }
  await viewer.attachToCanvas(byId("view"));
  viewer.setSliceType(viewer.sliceTypeMultiplanar);
  await show(cases.find((item) => !item.decision) ?? cases[0]);
}

start().catch((error) => showMessage(error.message, true));
