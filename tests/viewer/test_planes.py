"""The three planes in a browser without a GPU: colours of masks, and a scan as large as scanners make them."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import open_page
from PIL import Image
from playwright.sync_api import Page, Route

from hepar.imaging.masks import label_components
from hepar.imaging.volumes import Array, Geometry, to_image, write_image
from hepar.phantoms.phantom import make_phantom
from hepar.viewer import FILES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LONGEST_MS = 600_000  # on a busy machine; a core alone takes some 20 s
ORANGE = (255, 140, 60)
PAGE = """<!doctype html><body class="hepar"><link rel="stylesheet" href="viewer.css">
<div class="planes" style="height: 600px"><canvas id="view"></canvas></div><table></table>
<script src="niivue.js"></script><script src="page.js"></script><script src="viewer.js"></script>
<script src="pen.js"></script><script>
const LAYERS = [
  { name: "liver", colour: "green", visible: true, url: "liver.nii.gz" },
  { name: "tumour", colour: "orange", visible: true, url: "tumour.nii.gz" },
];
const planes = new HeparViewer(byId("view")), table = new HeparLesions(planes), pen = new HeparPen(planes), drawn = [];
async function show() {
  await planes.attach();
  const draw = planes.niivue.refreshLayers.bind(planes.niivue);
  planes.niivue.refreshLayers = (volume, layer) => { drawn.push(layer); draw(volume, layer); };
  await planes.show({ url: "image.nii.gz", modality: "CT", layers: LAYERS, opensOn: ["tumour", "liver"] });
  const places = await fetchJson("places.json");
  const rows = places.map((_, index) => make("tr", {}, make("td", {}, make("button", {}, `lesion ${index + 1}`))));
  document.querySelector("table").append(...rows);
  table.show(rows, places);
  document.body.dataset.shown = "yes";
}
show();
</script>"""


@pytest.fixture
def page() -> Iterator[Page]:
    with open_page() as opened:
        opened.set_default_timeout(LONGEST_MS)
        yield opened


def show(page: Page, folder: Path, places: list[Any]) -> None:
    """Show the scan and masks of a folder, with a table of places."""
    bodies = {"": PAGE.encode(), "places.json": json.dumps(places).encode()}
    bodies |= {path.name: path.read_bytes() for path in (*FILES.values(), *folder.iterdir())}
    kinds = {".css": "text/css", ".js": "text/javascript", ".json": "application/json", "": "text/html"}

    def answer(route: Route) -> None:
        name = route.request.url.rpartition("/")[2]
        body = bodies["niivue.umd.js" if name == "niivue.js" else name]
        route.fulfill(body=body, content_type=kinds.get(Path(name).suffix, "application/octet-stream"))

    page.route("http://viewer.test/**", answer)
    page.goto("http://viewer.test/")
    page.wait_for_selector("[data-shown]")


def write_volumes(folder: Path, image_zyx: Array, masks_zyx: dict[str, Array], grid: Geometry) -> None:
    for name, array_zyx in {"image": image_zyx.astype(np.int16), **masks_zyx}.items():
        write_image(to_image(array_zyx, grid), folder / "volume.nii")
        (folder / f"{name}.nii.gz").write_bytes(gzip.compress((folder / "volume.nii").read_bytes(), 1))


def orange_pixels(page: Page) -> int:
    shown = np.asarray(Image.open(io.BytesIO(page.locator("#view").screenshot())).convert("RGB")).astype(int)
    return int((np.abs(shown - ORANGE).max(axis=-1) < 30).sum())


def test_outlines_have_the_colour_of_their_layer_and_fills_lie_over_each_other(page: Page, tmp_path: Path) -> None:
    grid = Geometry((9, 40, 40), (3.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    liver_zyx, tumour_zyx = np.zeros(grid.size_zyx, np.uint8), np.zeros(grid.size_zyx, np.uint8)
    liver_zyx[2:7, 5:35, 5:35], tumour_zyx[3:6, 10:20, 10:20] = 1, 1
    write_volumes(tmp_path, np.zeros(grid.size_zyx), {"liver": liver_zyx, "tumour": tumour_zyx}, grid)
    show(page, tmp_path, [])
    assert page.evaluate("planes.voxel") == pytest.approx([39 - 14, 39 - 14, 4], abs=1)  # most tumour
    painted = np.array(page.evaluate("[...planes.paint.img]")).reshape(*grid.size_zyx, 4)
    assert painted[4, 5, 20].tolist() == [74, 214, 129, 255]  # the liver's edge
    assert painted[4, 25, 25].tolist() == [74, 214, 129, 64]  # and within, a quarter opaque
    assert painted[4, 10, 15].tolist() == [*ORANGE, 255]
    over, under = 0.25, 0.25 * 0.75
    mixed = [(over * top + under * below) / (over + under) for top, below in zip(ORANGE, (74, 214, 129), strict=True)]
    assert painted[4, 15, 15].tolist() == pytest.approx([*mixed, 255 * (over + under)], abs=0.6)
    assert not painted[liver_zyx == 0].any()
    assert orange_pixels(page) > 100
    page.evaluate("planes.setVisible('tumour', false)")
    assert orange_pixels(page) == 0
    page.evaluate("planes.setVisible('tumour', true)")
    assert orange_pixels(page) > 100


def test_a_click_in_a_plane_grows_the_region_there_and_one_beside_the_planes_nothing(
    page: Page, tmp_path: Path
) -> None:
    grid = Geometry((9, 40, 40), (3.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    image_zyx, liver_zyx = np.zeros(grid.size_zyx), np.zeros(grid.size_zyx, np.uint8)
    image_zyx[2:7, 10:20, 10:20], liver_zyx[4, 30, 30] = 100, 1
    write_volumes(tmp_path, image_zyx, {"liver": liver_zyx, "tumour": liver_zyx}, grid)
    show(page, tmp_path, [])
    page.evaluate("pen.begin('liver')")
    page.evaluate("pen.use('grow')")
    box = page.locator("#view").bounding_box()
    assert box is not None
    page.evaluate("planes.goTo([24, 24, 4])")  # in the bright block
    page.mouse.click(box["x"] + box["width"] - 5, box["y"] + box["height"] - 5)
    assert page.evaluate("pen.voxels") == 1
    left, top = page.evaluate("[...planes.niivue.frac2canvasPos(planes.niivue.scene.crosshairPos)]")
    page.evaluate("planes.goTo([0, 0, 4])")  # elsewhere in the axial plane
    page.mouse.click(box["x"] + left, box["y"] + top)
    assert page.evaluate("planes.voxel") == [24, 24, 4]
    assert page.evaluate("pen.voxels") == 1 + 5 * 10 * 10


def test_masks_on_different_grids_are_not_drawn_over_each_other(page: Page, tmp_path: Path) -> None:
    grid = Geometry((4, 8, 8), (3.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    moved = Geometry((4, 8, 8), (3.0, 1.0, 1.0), (2.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    ones_zyx = np.ones(grid.size_zyx, np.uint8)
    write_volumes(tmp_path, ones_zyx, {"liver": ones_zyx, "tumour": ones_zyx}, grid)
    write_image(to_image(ones_zyx, moved), tmp_path / "moved.nii.gz")
    show(page, tmp_path, [])
    failed = page.evaluate(
        "planes.show({ url: 'image.nii.gz', modality: 'CT', opensOn: [], layers: [LAYERS[0],"
        " { ...LAYERS[1], url: 'moved.nii.gz' }] }).then(() => '', (error) => error.message)"
    )
    assert failed == "The masks lie on different grids."


def test_of_two_scans_the_one_that_was_asked_for_last_is_shown_whichever_loads_first(
    page: Page, tmp_path: Path
) -> None:
    grids = {
        name: Geometry((4, 8, width), (3.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
        for name, width in (("first", 8), ("slow", 10), ("last", 12))
    }
    for name, grid in grids.items():
        ones_zyx = np.ones(grid.size_zyx, np.uint8)
        write_volumes(tmp_path / name, ones_zyx, {"liver": ones_zyx, "tumour": ones_zyx}, grid)
    show(page, tmp_path / "first", [])
    held: dict[str, Route] = {}
    page.route("**/slow-*", lambda route: held.__setitem__(route.request.url.rpartition("/")[2], route))
    page.route("**/last-*", lambda route: route.fulfill(path=tmp_path / "last" / route.request.url.rpartition("-")[2]))
    page.evaluate(
        """() => {
          const of = (name, layers) => ({
            url: `${name}-image.nii.gz`, modality: "CT", opensOn: ["liver"],
            layers: layers.map((layer) => ({ ...layer, url: `${name}-${layer.url}` })),
          });
          window.slow = planes.show(of("slow", LAYERS));
          planes.setWindow({ low: 0, high: 1 }); // a click while it loads
          planes.goToLps([0, 0, 0]);
          planes.setVisible("liver", false);
          window.last = planes.show(of("last", LAYERS.slice(1)));
        }"""
    )
    assert page.evaluate("last")
    assert set(held) == {"slow-image.nii.gz", "slow-liver.nii.gz", "slow-tumour.nii.gz"}
    for name, route in held.items():
        route.fulfill(path=tmp_path / "slow" / name.rpartition("-")[2])
    assert page.evaluate("slow") is False
    assert page.evaluate("planes.sizes") == [12, 8, 4]
    assert page.evaluate("planes.layers.map(({ name }) => name)") == ["tumour"]
    assert page.evaluate("[...planes.masks.keys()]") == ["tumour"]


@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_a_row_leads_to_its_lesion_in_an_oblique_scan(page: Page, tmp_path: Path, plane: str) -> None:
    cos, sin = np.cos(np.radians(20)), np.sin(np.radians(20))
    about_x = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    about_z = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    coronal = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])  # its rows go down
    axes = coronal if plane == "coronal" else np.eye(3)
    grid = Geometry((20, 48, 40), (4.0, 1.5, 1.5), (-30.0, -40.0, 700.0), tuple((about_z @ about_x @ axes).ravel()))
    lesions_zyx = [(3, 9, 8), (16, 40, 30), (10, 12, 33)]
    tumour_zyx = np.zeros(grid.size_zyx, np.uint8)
    for at_zyx in lesions_zyx:
        tumour_zyx[at_zyx] = 1
    write_volumes(tmp_path, np.zeros(grid.size_zyx), {"liver": tumour_zyx, "tumour": tumour_zyx}, grid)
    show(page, tmp_path, [list(grid.to_lps_mm(at_zyx)) for at_zyx in lesions_zyx])
    slices, rows, columns = grid.size_zyx
    for index, (z, y, x) in enumerate(lesions_zyx):
        page.evaluate("planes.goTo([0, 0, 0])")
        page.get_by_text(f"lesion {index + 1}").click()
        behind, below = (slices - 1 - z, rows - 1 - y) if plane == "coronal" else (rows - 1 - y, z)
        assert page.evaluate("planes.voxel") == [columns - 1 - x, behind, below]
        assert page.evaluate("planes.masks.get('tumour').getValue(...planes.voxel)") == 1


def test_a_row_of_the_table_leads_to_its_lesion_in_a_large_scan(page: Page, tmp_path: Path) -> None:
    times = (2, 5, 5)  # 128 × 480 × 480 voxels
    phantom = make_phantom(3, "CT", "portal-venous", tumours=3)
    image_zyx, liver_zyx, tumour_zyx = (
        np.kron(array_zyx, np.ones(times, np.int8)).astype(np.int16 if array_zyx.dtype != bool else np.uint8)
        for array_zyx in (phantom.image_zyx, phantom.liver_zyx, phantom.tumour_zyx)
    )
    grid = Geometry(image_zyx.shape, (2.0, 0.72, 0.72), (-170.0, -160.0, -90.0), tuple(np.eye(3).ravel()))
    write_volumes(tmp_path, image_zyx, {"liver": liver_zyx, "tumour": tumour_zyx}, grid)
    labels_zyx, voxels = label_components(tumour_zyx > 0)
    count = len(voxels)
    centres_zyx = [np.argwhere(labels_zyx == number).mean(axis=0) for number in range(1, count + 1)]
    show(page, tmp_path, [list(grid.to_lps_mm(tuple(centre_zyx))) for centre_zyx in centres_zyx])
    assert page.evaluate("drawn") == [0, 1]  # the texture of the scan, and one of all masks
    rows, columns = grid.size_zyx[1:]
    for index in range(count):
        page.get_by_text(f"lesion {index + 1}").click()
        z, y, x = centres_zyx[index]
        assert page.evaluate("planes.voxel") == pytest.approx([columns - 1 - x, rows - 1 - y, z], abs=1)
    assert page.evaluate("drawn") == [0, 1]  # moving the crosshair draws none of them anew
    assert orange_pixels(page) > 100
