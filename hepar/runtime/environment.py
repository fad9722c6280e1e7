"""Environment variables that the command line, the components and the pipeline share, and the default image."""

from __future__ import annotations

STORE_VARIABLE = "HEPAR_STORE"  # DVC remote that holds versions of cohorts, pseudo-labels, pools, reports; checkpoints
IMAGE_VARIABLE, DEFAULT_IMAGE = "HEPAR_IMAGE", "hepar:latest"  # of the components
EPHEMERAL_VARIABLE = "HEPAR_EPHEMERAL"  # set where files are lost with the process that wrote them, as in a container
