"""The lines of the code blocks of a page, by the heading above them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def blocks(page: Path, language: str = "bash") -> Mapping[str, list[str]]:
    """The lines of the page's blocks in a language; a line that goes on is one line, and comments are left out."""
    found: dict[str, list[str]] = {}
    heading = inside = begun = ""
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            inside = "" if inside else line.removeprefix("```") or "text"
        elif inside == language and line.strip() and not line.startswith("#"):
            begun += line
            if begun.endswith("\\"):
                begun = begun.removesuffix("\\")
                continue
            found.setdefault(heading, []).append(re.sub(r"\s+# .*", "", begun))
            begun = ""
        elif not inside and line.startswith("#"):
            heading = line.lstrip("# ")
    return found
