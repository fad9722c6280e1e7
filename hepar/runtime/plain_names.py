"""Names of files that come from elsewhere: plain relative paths, or refused."""

from __future__ import annotations

MAX_NAME_BYTES, MAX_PART_BYTES = 1024, 255


def broken_rule(name: str) -> str:
    """Why a name is no path of a file in a folder, as the end of a sentence; empty if it is one."""
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or name.startswith("/") or any(part in ("", ".", "..") for part in parts):
        return "which is not a plain path"
    if any(part.startswith(".") for part in parts):
        return "which is hidden"
    if len(name.encode()) > MAX_NAME_BYTES or max(len(part.encode()) for part in parts) > MAX_PART_BYTES:
        return "whose name is too long"
    return ""
