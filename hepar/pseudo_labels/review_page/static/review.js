// The queue on the left, one case in three planes on the right. The server saves a decision before the page shows it.
"use strict";

const LAYERS = [
  { name: "liver", label: "liver", colour: "green", visible: true, key: "m" },
  { name: "uncertain", label: "uncertain", colour: "blue", visible: true, key: "u" },
  { name: "tumour", label: "manual tumour", colour: "orange", visible: true, key: "t" },
];
const VERDICTS = { accept: "accepted", review: "for review", reject: "rejected" };
const DECISIONS = { accept: "accepted", reject: "rejected", correct: "corrected" };
const OPENS_ON = ["uncertain", "liver"]; // most is in doubt there

let cases = [];
let current = null;
let busy = false;
const planes = new HeparViewer(byId("view"));
const pen = new HeparPen(planes);
const viewer = planes.niivue;

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

async function show(item) {
  if (blocked()) return;
  current = item;
  delete byId("view").dataset.shown;
  showQueue();
  showFacts(item);
  showMessage("Loading the volume…");
  const folder = `files/${encodeURIComponent(item.case_id)}`;
  const layers = LAYERS.filter((layer) => item.files.includes(layer.name)).map((layer) => ({
    ...layer, url: `${folder}/${maskOf(item, layer)}.nii.gz`,
  }));
  try {
    const shown = await planes.show({ url: `${folder}/image.nii.gz`, modality: item.modality, layers, opensOn: OPENS_ON });
    if (!shown) return; // another case was selected while this one loaded
  } catch (error) {
    showMessage(`The volume cannot be displayed: ${error.message}`, true);
    return;
  }
  showMessage("");
  byId("view").dataset.shown = item.case_id;
}

// Whether a drawing is open, which would be lost.
function blocked() {
  if (pen.open) showMessage("Save the drawing (S) or discard it (Esc) first", true);
  return pen.open;
}

function isShown() {
  const ready = current && byId("view").dataset.shown === current.case_id;
  if (current && !ready) showMessage("Wait until the volume is displayed", true);
  return Boolean(ready);
}

async function save(path, options, afterwards) {
  if (busy || blocked() || !isShown()) return;
  busy = true;
  try {
    await keep(path, options);
    await afterwards();
  } catch (error) {
    showMessage(error.message, true);
  } finally {
    busy = false;
  }
}

async function keep(path, options) {
  const saved = await fetchJson(`api/cases/${encodeURIComponent(current.case_id)}/${path}`, { method: "POST", ...options });
  current = cases[cases.findIndex((item) => item.case_id === saved.case_id)] = saved;
  showQueue();
  showFacts(saved);
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

function draw() {
  if (pen.open || !isShown()) return;
  pen.begin("liver");
  showMessage("");
}

function discard() {
  if (pen.open) pen.end();
  showMessage("");
}

async function saveDrawing() {
  if (!pen.open || busy) return;
  if (!pen.changed) {
    showMessage("Nothing was drawn: discard with Esc, or accept the mask as it is", true);
    return;
  }
  busy = true;
  try {
    const form = new FormData();
    form.append("mask", new Blob([await pen.bytes()]), "drawing.nii");
    await keep("mask", { body: form });
    pen.end();
  } catch (error) {
    showMessage(error.message, true);
    return;
  } finally {
    busy = false;
  }
  await show(current);
}

function showPen() {
  byId("drawing").hidden = !pen.open;
  byId("draw").hidden = pen.open;
  for (const tool of ["brush", "eraser", "grow"]) byId(tool).setAttribute("aria-pressed", String(pen.tool === tool));
  byId("pen-size").textContent = `${pen.size} px`;
  byId("accept").disabled = byId("reject").disabled = byId("next").disabled = pen.open;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=range], input[type=file]")) return;
  const key = event.key.toLowerCase();
  const actions = { a: accept, r: reject, n: next, d: draw, s: saveDrawing, escape: discard };
  if (key === "enter" && event.target.matches("button, a")) return; // which it presses
  if (!pen.handleKey(event) && !planes.handleKey(event)) {
    if (event.repeat || !actions[key]) return;
    actions[key]();
  }
  event.preventDefault();
  event.stopPropagation();
}

async function start() {
  history.replaceState(null, "", location.pathname); // the cookie holds the token: hide it from the address bar
  byId("accept").addEventListener("click", accept);
  byId("reject").addEventListener("click", reject);
  byId("next").addEventListener("click", next);
  byId("upload").addEventListener("change", upload);
  byId("draw").addEventListener("click", draw);
  for (const tool of ["brush", "eraser", "grow"]) byId(tool).addEventListener("click", () => pen.use(tool));
  byId("smaller").addEventListener("click", () => pen.setSize(pen.size - 2));
  byId("larger").addEventListener("click", () => pen.setSize(pen.size + 2));
  byId("undo").addEventListener("click", () => pen.undo());
  byId("save").addEventListener("click", saveDrawing);
  byId("discard").addEventListener("click", discard);
  planes.addControls(byId("controls"), LAYERS);
  pen.onChange(showPen);
  showPen();
  document.addEventListener("keydown", onKey, true);
  window.addEventListener("beforeunload", (event) => { if (pen.open && pen.changed) event.preventDefault(); });
  cases = await fetchJson("api/cases");
  if (!cases.length) {
    byId("title").textContent = "No pseudo-livers to review";
    byId("count").textContent = "";
    return;
  }
  await planes.attach();
  await show(cases.find((item) => !item.decision) ?? cases[0]);
}

start().catch((error) => showMessage(error.message, true));
