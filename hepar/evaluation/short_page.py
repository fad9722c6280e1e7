"""The page of a report for a place that takes no large file: with fewer pictures."""

from __future__ import annotations

import re

_PICTURE = re.compile(r'<figure(?P<stack> class="stack")?>\n<svg.*?(?=<figcaption>)', re.DOTALL)
_TITLE_END = "</h1>\n"
_EMPTY = "<figure>\n"  # what is left of a picture
_NOTE = '<p class="note">{} of {} pictures are left out here; the whole page is report.html of the report.</p>\n'


def shorten_page(page: str, max_bytes: int) -> str:
    """A page of at most `max_bytes`, if leaving out pictures suffices; their captions stay.

    First go the slices that are scrolled through, then the single ones, each from the end, so that the worst cases stay
    longest.
    """
    pictures = list(_PICTURE.finditer(page))
    note = _NOTE.format(len(pictures), len(pictures))
    excess, left_out = len(page.encode()) - max_bytes, set[int]()
    if excess <= 0:
        return page
    excess += len(note.encode())
    for picture in sorted(pictures, key=lambda found: (found["stack"] is None, -found.start())):
        if excess > 0:
            left_out.add(picture.start())
            excess -= len(picture[0].encode()) - len(_EMPTY)
    note = _NOTE.format(len(left_out), len(pictures))
    kept = _PICTURE.sub(lambda found: _EMPTY if found.start() in left_out else found[0], page)
    return kept.replace(_TITLE_END, _TITLE_END + note, 1)
