"""Settings of a prediction without params: of one scan on the command line, or by a model registered without them."""

from __future__ import annotations

OVERLAP = 0.5  # of neighbouring windows, as a fraction
MIN_LESION_ML = 0.1  # smaller predicted tumours are dropped
