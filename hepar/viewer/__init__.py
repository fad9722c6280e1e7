"""The viewer of all pages: NiiVue, and around it the planes, windows, outlines and drawing tools that they share."""

from __future__ import annotations

from pathlib import Path

STATIC = Path(__file__).parent / "static"
FILES = {  # by the name under which a page asks for them
    **{name: STATIC / name for name in ("page.js", "viewer.js", "pen.js", "viewer.css")},
    "niivue.js": STATIC / "vendor" / "niivue.umd.js",
}
CONTENT_SECURITY_POLICY = (  # NiiVue decodes images in WebAssembly and workers of its own
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval' blob:; worker-src blob:; img-src 'self' data: blob:;"
    " connect-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
