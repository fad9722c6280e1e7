// The viewer in a page that is a single file: NiiVue is in it compressed, and so are the scans and their masks.
// The page has the elements `embedded`, hidden until a scan is shown, with `controls`, `view`, `scan` and `reduced`; what
// has the class `without-viewer` is hidden from then on. A row that has `data-lps` is a lesion. Without WebGL 2 nothing changes.
"use strict";

async function unpack(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

async function embed() {
  if (!hasWebGl2()) return;
  document.head.append(make("script", { textContent: await unpack(byId("niivue").textContent) }));
  const { layers, scans } = JSON.parse(byId("scans").textContent);
  const section = byId("embedded"), canvas = byId("view"), chosen = byId("scan");
  const planes = new HeparViewer(canvas), table = new HeparLesions(planes);
  section.hidden = false; // a canvas without a size cannot be drawn on
  planes.addControls(byId("controls"), layers);
  const show = async (scan) => {
    delete canvas.dataset.shown;
    const shown = await planes.show({
      ...scan, url: address(scan.image), opensOn: layers.map(({ name }) => name).reverse(),
      layers: layers.filter(({ name }) => name in scan.masks).map((layer) => ({ ...layer, url: address(scan.masks[layer.name]) })),
    });
    if (!shown) return; // another one was chosen meanwhile
    byId("reduced").textContent = scan.reduced;
    canvas.dataset.shown = scan.name;
  };
  await planes.attach();
  chosen.replaceChildren(...scans.map(({ name }, index) => new Option(name, index)));
  chosen.parentElement.hidden = scans.length < 2;
  chosen.addEventListener("change", () => {
    const scan = scans[chosen.value];
    show(scan).catch((error) => { byId("reduced").textContent = `${scan.name} cannot be displayed: ${error.message}`; });
  });
  const rows = [...document.querySelectorAll("tr[data-lps]")];
  table.show(rows, rows.map((row) => row.dataset.lps.split(" ").map(Number)));
  for (const row of rows) {
    const [first] = row.cells;
    first.replaceChildren(make("button", { type: "button", title: "Go to this lesion" }, first.textContent));
    row.addEventListener("click", () => section.scrollIntoView({ block: "nearest" }));
  }
  section.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=range], select")) return;
    if (!table.handleKey(event) && !planes.handleKey(event)) return;
    event.preventDefault();
    event.stopPropagation();
  }, true);
  section.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas) event.stopPropagation(); // scrolls the page, unless the planes were clicked
  }, true);
  await show(scans[0]);
  document.querySelectorAll(".without-viewer").forEach((element) => { element.hidden = true; });
}

const address = (base64) => `data:application/gzip;base64,${base64}`;

embed().catch((error) => {
  byId("embedded").hidden = true;
  console.error(error);
});
