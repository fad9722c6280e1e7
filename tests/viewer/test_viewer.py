"""The vendored viewer is the published one, and every page finds the files of the viewer."""

from __future__ import annotations

import hashlib
import re

from conftest import ROOT

from hepar import viewer
from hepar.pseudo_labels.review_page.server import PAGES as REVIEW
from hepar.service.app import PAGES as SERVICE

VENDOR = viewer.STATIC / "vendor"


def test_niivue_is_the_published_file_and_comes_with_its_licence() -> None:
    (wanted,) = re.findall(r"sha256 `([0-9a-f]{64})`", (VENDOR / "README.md").read_text())
    assert hashlib.sha256((VENDOR / "niivue.umd.js").read_bytes()).hexdigest() == wanted
    assert "BSD 2-Clause" in (VENDOR / "NIIVUE-LICENSE").read_text()


def test_pages_name_only_files_that_are_served_from_here() -> None:
    pages = {REVIEW[""]: (REVIEW, ""), SERVICE["service.js"].with_name("index.html"): (SERVICE, "static/")}
    for page, (served, prefix) in pages.items():
        text = page.read_text()
        named = re.findall(r'<(?:script|link)[^>]+(?:src|href)="([^"]+)"', text)
        local = [name.removeprefix(prefix) for name in named if not name.startswith("data:")]
        assert {"niivue.js", "viewer.js", "viewer.css"} <= set(local)
        assert all(served[name].is_file() for name in local)
        assert "Research use only. Not for diagnosis or treatment." in text
        assert "://" not in text


def test_the_package_contains_all_static_files() -> None:
    globs = re.search(r"package-data = \{ hepar = \[(.*)\] \}", (ROOT / "pyproject.toml").read_text())
    assert globs is not None
    packed = {path for glob in re.findall(r'"([^"]+)"', globs[1]) for path in (ROOT / "hepar").glob(glob)}
    static = {path for path in (ROOT / "hepar").glob("**/static/**/*") if path.is_file()}
    assert static <= packed
