"""Settings of a prediction without params: of one scan on the command line, or by a model registered without them."""

from __future__ import annotations

OVERLAP = 0.5  # of neighbouring windows, as a fraction
FAST_OVERLAP = 0.25  # of a fast prediction, which has no variants and no mirrored scans either
VARIANTS = 1  # test-time variants of size and contrast: only the plain one
TUMOUR_THRESHOLD = 0.5  # the probability that a lesion exceeds somewhere, of a model that names none
OUTLINE_SHARE = 0.6  # of that threshold, which all voxels of a lesion exceed: its outline, decision 016
MIN_LESION_ML = 0.1  # smaller predicted tumours are dropped, by a model that names no other volume
