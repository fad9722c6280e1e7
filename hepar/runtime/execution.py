"""Where a stage runs: facts that label MLflow runs and registered versions.

They differ between two runs of the same stage on the same inputs, so no artifact holds them.
"""

from __future__ import annotations

import os

STAGE_IMAGE_VARIABLE = "HEPAR_STAGE_IMAGE"  # set by whoever starts the container of a stage
KFP_RUN_VARIABLE = "HEPAR_KFP_RUN"  # set on a cluster, where a run has an id that outlives it
IMAGE, KFP_RUN = "image", "kfp run"


def execution_facts() -> dict[str, str]:
    """The container image and the KFP run of this process; what is not known is left out."""
    given = {IMAGE: os.environ.get(STAGE_IMAGE_VARIABLE), KFP_RUN: os.environ.get(KFP_RUN_VARIABLE)}
    return {name: value for name, value in given.items() if value}
