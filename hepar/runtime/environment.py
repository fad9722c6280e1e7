"""Environment variables that the command line, the components and the pipeline share, and the default image."""

from __future__ import annotations

POOL_REMOTE_VARIABLE = "HEPAR_POOL_REMOTE"  # DVC remote that holds the versions of pools
IMAGE_VARIABLE, DEFAULT_IMAGE = "HEPAR_IMAGE", "hepar:latest"  # of the components
EPHEMERAL_VARIABLE = "HEPAR_EPHEMERAL"  # set where files are lost with the process that wrote them, as in a container
