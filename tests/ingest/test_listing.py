"""The listing of a source: it changes if and only if a scan was added, removed or modified."""

from __future__ import annotations

import json
import os
import shutil
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import SimpleITK as sitk

from hepar.errors import DataError
from hepar.ingest.listing import list_source
from hepar.ingest.sources.pseudonyms import VARIABLE, keyed_hash
from hepar.runtime.artifacts import sha256_file

HEADER = "case_id,modality,image,liver,tumour,liver_state,tumour_state\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files at times 1 s and 2 s, and hidden ones that no reader reads."""
    root = tmp_path / "source"
    for number, name in enumerate(("b.nii", "a/b, c.nii"), start=1):
        write(root / name, b"x" * number, seconds=number)
    write(root / ".DS_Store", b"x", seconds=9)
    write(root / ".git" / "index", b"x", seconds=9)
    return root


def write(path: Path, content: bytes, seconds: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (seconds, seconds))


def test_a_folder_lists_its_files_sorted_with_size_and_time(folder: Path) -> None:
    assert list_source(str(folder)) == '"a/b, c.nii",2,2000000000\nb.nii,1,1000000000\n'


def test_a_changed_an_added_and_a_removed_file_change_the_listing(folder: Path) -> None:
    listings = [list_source(str(folder))]
    assert list_source(str(folder)) == listings[0]
    write(folder / "b.nii", b"longer", seconds=1)
    listings.append(list_source(str(folder)))
    os.utime(folder / "b.nii", ns=(0, 1_000_000_001))
    listings.append(list_source(str(folder)))
    write(folder / "new" / "c.nii", b"x", seconds=3)
    listings.append(list_source(str(folder)))
    (folder / "a" / "b, c.nii").unlink()
    listings.append(list_source(str(folder)))
    assert len(set(listings)) == 5


def test_a_table_lists_its_own_hash_and_the_volumes_that_it_names(folder: Path) -> None:
    table = folder.parent / "table.csv"
    table.write_text(
        HEADER
        + f"one,CT,source/b.nii,,,unknown,absent\ntwo,MR,{folder}/b.nii,source/gone.nii,source/b.nii,manual,manual\n"
    )
    digest = sha256_file(table)
    expected = [f"{folder}/b.nii,1,1000000000", "source/b.nii,1,1000000000", "source/gone.nii,,missing"]
    assert list_source(str(table)).splitlines() == [*expected, f"table.csv,{table.stat().st_size},{digest}"]


def test_a_touched_table_is_the_same_and_an_edited_one_is_not(folder: Path) -> None:
    table = folder.parent / "table.csv"
    table.write_text(HEADER + "one,CT,source/b.nii,,,unknown,absent\n")
    before = list_source(str(table))
    os.utime(table, (5, 5))
    assert list_source(str(table)) == before
    table.write_text(table.read_text().replace("absent", "unknown"))
    assert list_source(str(table)) != before


def test_a_volume_that_a_table_names_changes_its_listing(folder: Path) -> None:
    table = folder.parent / "table.csv"
    table.write_text(HEADER + "one,CT,source/b.nii,,,unknown,absent\n")
    before = list_source(str(table))
    write(folder / "b.nii", b"xy", seconds=1)
    assert list_source(str(table)) != before


def test_detached_voxels_are_listed_with_their_header(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((8, 8, 8), np.uint8)), str(tmp_path / "scan.mhd"))
    (tmp_path / "table.csv").write_text(HEADER + "one,CT,scan.mhd,,,unknown,absent\n")
    names = [line.split(",")[0] for line in list_source(str(tmp_path / "table.csv")).splitlines()]
    assert names == ["scan.mhd", "scan.raw", "table.csv"]


def test_the_table_of_a_folder_adds_volumes_outside_the_folder(folder: Path) -> None:
    outside = folder.parent / "outside.nii"
    write(outside, b"xyz", seconds=4)
    (folder / "cohort.csv").write_text(HEADER + f"one,CT,b.nii,,,unknown,absent\ntwo,CT,{outside},,,unknown,absent\n")
    lines = list_source(str(folder)).splitlines()
    assert f"{outside},3,4000000000" in lines
    assert len(lines) == 4  # b.nii once


@pytest.mark.parametrize("name", ["all.zip", "ALL.ZIP"])
def test_a_zip_lists_itself(name: str, folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("b.nii", b"x")
    os.utime(tmp_path / name, (7, 7))
    assert list_source(str(tmp_path / name)) == f"{name},{(tmp_path / name).stat().st_size},7000000000\n"


def test_the_listing_does_not_depend_on_where_the_source_lies(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    assert list_source(str(tmp_path / "elsewhere" / "copy")) == list_source(str(folder))


class Qido(BaseHTTPRequestHandler):
    """Answers searches for series."""

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        offset = int(query.get("offset", ["0"])[0])
        body = json.dumps([series(*item) for item in SERIES.get(query["Modality"][0], [])[offset:]]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""


SERIES = {"CT": [("1.2.3", "1.2.3.1", 80), ("1.2.3", "1.2.3.2", None)], "MR": [("1.2.4", "1.2.4.1", 30)]}


def series(study: str, uid: str, instances: int | None) -> dict[str, object]:
    found: dict[str, object] = {
        "0020000D": {"vr": "UI", "Value": [study]},
        "0020000E": {"vr": "UI", "Value": [uid]},
        "00100020": {"vr": "LO", "Value": ["MRN-7730021"]},
    }
    return found if instances is None else {**found, "00201209": {"vr": "IS", "Value": [instances]}}


def test_a_dicomweb_server_lists_pseudonyms_and_numbers_of_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "a key of the tests")
    with ThreadingHTTPServer(("127.0.0.1", 0), Qido) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        listing = list_source(f"dicomweb+http://127.0.0.1:{server.server_port}/dicom-web")
        server.shutdown()
    pseudonym = keyed_hash(b"a key of the tests")
    counts = {"1.2.3/1.2.3.1": "80", "1.2.3/1.2.3.2": "", "1.2.4/1.2.4.1": "30"}
    assert listing.splitlines() == sorted(f"{pseudonym(uids)},,{count}" for uids, count in counts.items())
    assert "7730021" not in listing
    assert "1.2.3" not in listing


def test_phantoms_are_one_line() -> None:
    assert list_source("phantoms") == "phantoms\n"


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^source .*none: no such file or folder$"):
        list_source(str(tmp_path / "none"))
