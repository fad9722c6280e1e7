// Upload a scan, wait for its prediction, and look at the results. The address keeps the job, so a reload finds it again.
"use strict";

const LAYERS = [
  { name: "liver", label: "liver", colour: "green", visible: true, key: "m" },
  { name: "tumour", label: "tumours", colour: "orange", visible: true, key: "t" },
];
const POLL_MS = 700, LONGEST_WAIT_MS = 30_000;
const REFUSALS = [401, 403, 404]; // the job is not for this browser, or there is none: asking again does not help
const DOWNLOADS = {
  "liver.nii.gz": "Liver mask", "tumour.nii.gz": "Tumour mask", "segmentation.dcm": "DICOM-SEG", "report.dcm": "DICOM SR",
  "measurements.json": "Measurements", "measurements.csv": "Scan, CSV", "lesions.csv": "Lesions, CSV",
  "overview.png": "Overview", "page.html": "Page",
};
const NO_PLANES = hasWebGl2() ? "" : "This browser has no WebGL 2, which the planes need. The overview among the downloads shows slices.";
const planes = new HeparViewer(byId("view"));
const table = new HeparLesions(planes);
let job = null;
let scan = null;
let uploading = null;
let attached = null; // the promise of the planes, once a scan is shown

const sleep = (ms) => new Promise((done) => { setTimeout(done, ms); });

function showError(text) {
  byId("error").textContent = text;
}

function showProgress(text, done, total) {
  byId("drop").hidden = true;
  byId("progress").hidden = false;
  byId("step").textContent = text;
  if (total) Object.assign(byId("bar"), { value: done, max: total });
  else byId("bar").removeAttribute("value");
}

function showStart() {
  job = scan = null;
  history.replaceState(null, "", location.pathname);
  byId("start").hidden = byId("drop").hidden = false;
  byId("results").hidden = byId("progress").hidden = byId("again").hidden = true;
}

// The body is the file itself: neither its name nor its path is sent.
function post(file) {
  const modality = document.querySelector("input[name=modality]:checked").value;
  return new Promise((resolve, reject) => {
    const request = uploading = new XMLHttpRequest();
    request.open("POST", `api/jobs${modality ? `?modality=${modality}` : ""}`);
    request.responseType = "json";
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.addEventListener("progress", (event) => showProgress("Uploading…", event.loaded, event.total));
    request.upload.addEventListener("load", () => showProgress("Checking the upload…"));
    request.addEventListener("load", () => resolve({ status: request.status, body: request.response }));
    request.addEventListener("error", () => reject(new Error("The upload was broken off; is the service running?")));
    request.addEventListener("abort", () => reject(new Error("The upload was cancelled.")));
    request.send(file);
  });
}

async function upload(file) {
  if (!file || uploading) return;
  showError("");
  showProgress("Uploading…", 0, 1);
  try {
    const { status, body } = await post(file).finally(() => {
      uploading = null;
      byId("file").value = "";
    });
    if (status !== 202) throw new Error(body?.error ?? `The service answered ${status}.`);
    await follow(body);
  } catch (error) {
    showStart();
    showError(error.message);
  }
}

// Show a job until its end; of one that a reload finds only the id is known.
async function follow(found) {
  const { id } = job = found;
  history.replaceState(null, "", `#${id}`);
  while (!["done", "failed"].includes(job.state)) {
    if (job.state) {
      showState();
      await sleep(POLL_MS);
    }
    const now = await askFor(id);
    if (!now) return;
    job = now;
  }
  if (job.state === "failed") throw new Error(job.error);
  await showResults();
}

function showState() {
  const waiting = job.ahead ? `Waiting: ${job.ahead} ahead` : "Waiting for the device…";
  if (job.state !== "running") showProgress(waiting);
  else if (!job.windows) showProgress(`${job.step || "starting"}…`, job.percent, job.percent && 100);
  else {
    const then = job.windows_done === job.windows ? "; measuring and writing…" : "";
    showProgress(`${job.step}: ${job.windows_done} of ${job.windows} windows, ${job.percent} %${then}`, job.percent, 100);
  }
}

// The job as the service has it now, asked for ever less often while the connection fails; null if the user left it meanwhile.
async function askFor(id) {
  for (let wait = POLL_MS; job?.id === id; wait = Math.min(2 * wait, LONGEST_WAIT_MS)) {
    try {
      const now = await fetchJson(`api/jobs/${encodeURIComponent(id)}`);
      return job?.id === id ? now : null;
    } catch (error) {
      if (job?.id !== id) return null;
      if (REFUSALS.includes(error.status)) throw error;
      showProgress(`No connection to the service; trying again… (${error.message})`);
    }
    await sleep(wait);
  }
  return null;
}

async function showResults() {
  byId("start").hidden = true;
  byId("results").hidden = byId("again").hidden = false;
  byId("scan").replaceChildren(...job.scans.map((item, index) => new Option(item.measurements.scan.name, index)));
  byId("which").hidden = job.scans.length < 2;
  byId("left-out").replaceChildren(...job.left_out.map(({ name, reason }) => make("li", {}, `${name} is left out: ${reason}`)));
  byId("kept").textContent = `Deleted in ${Math.max(1, Math.round(job.deleted_in_seconds / 60))} min.`;
  await showScan(0);
}

// Show a sentence in place of the planes, or the planes if it is empty.
function showNoPlanes(text) {
  byId("no-planes").textContent = text;
  byId("no-planes").hidden = !text;
  byId("controls").hidden = byId("view").parentElement.hidden = Boolean(text);
  if (text) byId("hint").hidden = true; // of what a click on a lesion shows
}

async function showScan(index) {
  const { id } = job, chosen = scan = job.scans[index];
  delete byId("view").dataset.shown;
  showError("");
  const { measurements: found } = scan, values = found.measurements;
  byId("warnings").replaceChildren(
    ...found.warnings.map((warning) => make("li", {}, warning.message)), ...(scan.problem ? [make("li", {}, scan.problem)] : []));
  byId("facts").replaceChildren(...[
    ["Liver, tumours included", amount(values.liver_ml, 0, "ml")], ["Tumours", amount(values.tumour_ml, 1, "ml")],
    ["Tumour burden", amount(values.burden_percent, 1, "%")], ["Modality", `${found.scan.modality}, from ${found.scan.modality_from}`],
    ["Size", found.scan.size_xyz.join(" × ")], ["Spacing, mm", found.scan.spacing_xyz_mm.map((mm) => mm.toFixed(2)).join(" × ")],
  ].flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]));
  showLesions(found.lesions, values.tumour_ml);
  showDownloads();
  const folder = `api/jobs/${id}/scans/${scan.number}`;
  const layers = LAYERS.filter((layer) => scan.files.includes(`${layer.name}.nii.gz`)).map((layer) => ({
    ...layer, url: `${folder}/${layer.name}.nii.gz`,
  }));
  showNoPlanes(NO_PLANES);
  if (NO_PLANES) return;
  try {
    attached ??= planes.attach();
    await attached;
    if (scan !== chosen) return;
    const shown = await planes.show({
      url: `${folder}/image.nii.gz`, modality: found.scan.modality, layers, opensOn: ["tumour", "liver"],
    });
    if (shown && scan === chosen) byId("view").dataset.shown = `${id}/${chosen.number}`;
  } catch (error) {
    if (scan === chosen) showNoPlanes(`The scan cannot be displayed: ${error.message}`);
  }
}

function amount(value, digits, unit) {
  return value === null || value === undefined ? "–" : `${value.toFixed(digits)} ${unit}`.trim();
}

function showLesions(lesions, tumourMl) {
  byId("lesions").hidden = byId("hint").hidden = !lesions.length;
  byId("no-lesions").hidden = Boolean(lesions.length);
  byId("no-lesions").textContent = tumourMl === null ? "The model was not taught tumours." : "None found.";
  const rows = lesions.map((item) => {
    const button = make("button", { type: "button", title: "Go to this lesion" }, String(item.number));
    return make("tr", {}, make("td", {}, button), ...[
      amount(item.volume_ml, 2, ""), amount(item.longest_diameter_mm, 1, ""), amount(item.perpendicular_diameter_mm, 1, ""),
      amount(item.confidence, 2, ""),
    ].map((text) => make("td", {}, text)));
  });
  byId("lesions").tBodies[0].replaceChildren(...rows);
  table.show(rows, lesions.map((item) => item.centre_lps_mm));
}

function showDownloads() {
  const link = (href, text, name) => make("li", {}, make("a", { className: "button", href, download: name }, text));
  const single = Object.entries(DOWNLOADS).filter(([name]) => scan.files.includes(name)).map(([name, text]) => (
    link(`api/jobs/${job.id}/scans/${scan.number}/${name}`, text, name)));
  byId("downloads").replaceChildren(link(`api/jobs/${job.id}/results.zip`, "Everything (zip)", "hepar-results.zip"), ...single);
}

async function remove() {
  const { id } = job;
  showStart();
  await fetchJson(`api/jobs/${id}`, { method: "DELETE" }).catch((error) => showError(error.message));
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !scan || event.target.matches("input[type=range], select")) return;
  if (!table.handleKey(event) && !planes.handleKey(event)) return;
  event.preventDefault();
  event.stopPropagation();
}

async function start() {
  const { hash } = location;
  history.replaceState(null, "", location.pathname + hash); // the cookie holds the token: hide it from the address bar
  planes.addControls(byId("controls"), LAYERS);
  const drop = byId("drop");
  for (const name of ["dragover", "drop", "dragleave"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
    });
  }
  document.addEventListener("drop", (event) => { if (!drop.hidden) upload(event.dataTransfer.files[0]); });
  drop.addEventListener("submit", (event) => event.preventDefault());
  byId("file").addEventListener("change", () => upload(byId("file").files[0]));
  byId("cancel").addEventListener("click", () => (uploading ? uploading.abort() : job && remove()));
  byId("again").addEventListener("click", showStart);
  byId("delete").addEventListener("click", remove);
  byId("scan").addEventListener("change", () => showScan(Number(byId("scan").value)));
  document.addEventListener("keydown", onKey, true);
  describe().catch((error) => { if (!job) showError(error.message); });
  if (hash.length > 1) {
    try {
      await follow({ id: hash.slice(1) });
    } catch (error) {
      showStart();
      showError(error.message);
    }
  }
}

async function describe() {
  const service = await fetchJson("api/service");
  byId("accepts").textContent = `${service.accepts}; at most ${(service.upload_bytes / 2 ** 30).toFixed(1)} GiB.`;
}

start().catch((error) => showError(error.message));
