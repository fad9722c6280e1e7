"""The viewer inside a page that is a single file, opens from a disk, and takes nothing from elsewhere."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from markupsafe import Markup

from hepar.viewer import FILES, STATIC

SCRIPTS = ("page.js", "viewer.js", "embedded.js")
COMPRESSION = 9


@dataclass(frozen=True)
class EmbeddedViewer:
    """Parts of a page with the elements that `embedded.js` names: style, scripts for its end, and its policy."""

    style: Markup
    scripts: Markup
    policy: str  # for a meta element: the scripts by their hashes, and nothing from elsewhere


def embed_viewer(layers: Sequence[Mapping[str, Any]], scans: Sequence[Mapping[str, Any]]) -> EmbeddedViewer:
    """The viewer of scans, each as `ReducedScan.facts` has them, with layers of {name, label, colour, visible, key}."""
    data = json.dumps({"layers": list(layers), "scans": list(scans)})
    data = data.replace("<", "\\u003c")  # which could end a script
    own = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS)
    packed, niivue_hash = _niivue()
    return EmbeddedViewer(
        style=Markup(FILES["viewer.css"].read_text(encoding="utf-8")),
        scripts=Markup(
            f'<script type="application/json" id="scans">{data}</script>\n'
            f'<script type="text/plain" id="niivue">{packed}</script>\n<script>{own}</script>'
        ),
        policy=_policy(f"'{_hash(own)}' '{niivue_hash}'"),
    )


def _policy(scripts: str) -> str:
    """Nothing from elsewhere; NiiVue decodes images in WebAssembly and workers of its own."""
    return (
        f"default-src 'none'; script-src {scripts} 'wasm-unsafe-eval' blob:; worker-src blob:; img-src data: blob:;"
        " connect-src data: blob:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    )


# of a server that hands such pages out: they get no cookie and reach nothing of its origin
HOSTED_POLICY = "sandbox allow-scripts; frame-ancestors 'none'; " + _policy("'unsafe-inline'")


@cache
def _niivue() -> tuple[str, str]:
    """NiiVue as gzip in base64, and its hash."""
    content = FILES["niivue.js"].read_bytes()
    packed = base64.b64encode(gzip.compress(content, COMPRESSION, mtime=0)).decode("ascii")
    return packed, _hash(content.decode("utf-8"))


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}"
