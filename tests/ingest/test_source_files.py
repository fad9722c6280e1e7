"""The files of a case: regular ones inside the source, all of them part of its hash."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from phantom_folder import SCAN, PhantomFolder, ingest, quarantine

from hepar.cases import Cohort
from hepar.ingest.building import build_case
from hepar.ingest.quarantine import Refused
from hepar.ingest.sources import open_source
from hepar.ingest.sources.files import folders
from hepar.ingest.splits import assign_splits
from hepar.params import Params


def point_to(source: PhantomFolder, cell: str) -> None:
    """Let the table name another image for one scan."""
    rows = source.rows()
    for row in rows:
        if row["case_id"] == SCAN:
            row["image"] = cell
    source.rewrite(rows)


def detach(source: PhantomFolder, header: str) -> Path:
    """Store the image of one scan as a header and a file of voxels; returns that file."""
    image = sitk.ReadImage(str(source.folder / SCAN / "image.nii.gz"))
    sitk.WriteImage(image, str(source.folder / SCAN / header))
    point_to(source, f"{SCAN}/{header}")
    return source.folder / SCAN / f"{Path(header).stem}.raw"


@pytest.mark.parametrize("header", ["image.mhd", "image.nhdr"])
def test_a_case_whose_detached_voxels_change_is_built_anew(header: str, source: PhantomFolder, tiny: Params) -> None:
    voxels = detach(source, header)
    before = ingest(source, tiny.ingest)
    first = {case.case_id: case for case in Cohort.load(before)}
    changed = np.fromfile(voxels, np.int16)
    changed[changed.size // 2 :][:50] += 1
    voxels.write_bytes(changed.tobytes())
    second = {case.case_id: case for case in Cohort.load(ingest(source, tiny.ingest))}
    assert {name for name in first if first[name].source_sha256 != second[name].source_sha256} == {SCAN}
    assert {name for name in first if first[name].voxels_sha256 != second[name].voxels_sha256} == {SCAN}


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "device", "loop", "absolute data", "linked data"])
def test_what_is_no_regular_file_of_the_source_is_refused(
    kind: str, source: PhantomFolder, tmp_path: Path, tiny: Params
) -> None:
    place, words = source.folder / SCAN / "other.nii.gz", "leads out of the source"
    outside = tmp_path / "outside.nii.gz"
    shutil.copy(source.folder / SCAN / "image.nii.gz", outside)
    cell = f"{SCAN}/other.nii.gz"
    if kind == "link":
        place.symlink_to(outside)
    if kind == "pipe":
        os.mkfifo(place)
        words = "is a device or pipe"
    if kind == "folder":
        place.mkdir()
        words = "is a folder"
    if kind == "device":
        cell, words = "/dev/zero", "cannot be read: its name must end in|is a device or pipe"
    if kind == "loop":
        place.symlink_to(place)
        words = "does not exist|cannot be read|Too many levels"
    if kind.endswith("data"):
        voxels, cell = detach(source, "image.mhd"), f"{SCAN}/image.mhd"
        voxels.rename(tmp_path / "outside.raw")
        header = source.folder / SCAN / "image.mhd"
        if kind == "linked data":
            voxels.symlink_to(tmp_path / "outside.raw")
        else:
            header.write_text(header.read_text().replace("image.raw", str(tmp_path / "outside.raw")))
    point_to(source, cell)
    (line,) = quarantine(ingest(source, tiny.ingest))
    assert line["case_id"] == SCAN
    assert any(part in line["value"] for part in words.split("|")), line


def test_a_table_may_name_volumes_elsewhere(source: PhantomFolder, tmp_path: Path, tiny: Params) -> None:
    shutil.copy(source.folder / SCAN / "image.nii.gz", tmp_path / "elsewhere.nii.gz")
    point_to(source, str(tmp_path / "elsewhere.nii.gz"))
    assert quarantine(ingest(source, tiny.ingest)) == []


def built(folder: Path, tiny: Params, out: Path) -> list[object]:
    with open_source(str(folder), tiny.ingest) as cases:
        return [build_case(case, out) for case in assign_splits(cases, tiny.ingest.split)]


def lits(folder: Path) -> None:
    folder.mkdir()
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(-900, 90, (12, 20, 20)).astype(np.int16))
    sitk.WriteImage(image, str(folder / "volume-1.nii"))


def test_a_link_that_leaves_a_folder_is_refused_and_one_inside_is_read(tmp_path: Path, tiny: Params) -> None:
    lits(tmp_path / "source")
    lits(tmp_path / "outside")
    (tmp_path / "source" / "volume-2.nii").symlink_to(tmp_path / "outside" / "volume-1.nii")
    (tmp_path / "source" / "volume-3.nii").symlink_to("volume-1.nii")
    results = built(tmp_path / "source", tiny, tmp_path / "cohort")
    assert [type(result).__name__ for result in results] == ["Accepted", "Refused", "Accepted"]
    assert results[1] == Refused("lits-002", "every file can be read", "volume-2.nii leads out of the source")


def test_links_in_circles_are_followed_once(tmp_path: Path, tiny: Params) -> None:
    lits(tmp_path / "source")
    for name in ("a", "b"):
        (tmp_path / "source" / name).symlink_to(".")
    (tmp_path / "source" / "c").mkdir()
    (tmp_path / "source" / "c" / "up").symlink_to("..")
    assert [path.name for path in folders(tmp_path / "source")] == ["source", "c"]
    assert len(built(tmp_path / "source", tiny, tmp_path / "cohort")) == 1


def test_beside_a_zip_a_table_names_files_of_the_source_and_no_others(tmp_path: Path, tiny: Params) -> None:
    """A folder with a zip is read from a folder of links, which the files of the table lead out of."""
    lits(source := tmp_path / "source")
    lits(tmp_path / "outside")
    (source / "out.nii").symlink_to(tmp_path / "outside" / "volume-1.nii")
    with zipfile.ZipFile(source / "notes.zip", "w") as archive:
        archive.writestr("read me.txt", "about this cohort")
    rows = [f"{name},CT,{name}.nii,unknown,absent,train" for name in ("volume-1", "out")]
    (source / "cohort.csv").write_text("\n".join(["case_id,modality,image,liver_state,tumour_state,split", *rows]))
    inside, out = built(source, tiny, tmp_path / "cohort")
    assert type(inside).__name__ == "Accepted", inside
    assert out == Refused("out", "every file can be read", "out.nii leads out of the source")
