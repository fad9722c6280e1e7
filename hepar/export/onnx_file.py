"""A trained model as one ONNX file that says how scans are preprocessed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from hepar import __version__
from hepar.errors import DataError
from hepar.export.mean_network import MeanNetwork, example_window
from hepar.inference.defaults import OUTLINE_SHARE
from hepar.inference.prediction import Model
from hepar.runtime.whole_files import whole_file

INPUT, OUTPUT = "image", "probability"
SPEC, VERSION, USE, STEPS = "hepar.model", "hepar.version", "hepar.use", "hepar.steps"  # metadata of the file
HOW_TO = (
    "Turn the scan to LPS and its axes to z y x; smooth it along axes that become coarser (Gaussian, sigma 0.4"
    " sqrt(new² - old²)) and interpolate it linearly at plan.spacing_zyx_mm. CT: plan.window_hu becomes -1 to 1,"
    " clipped. MR: clip at plan.mr_percentiles of the body and scale by plan.mr_scale. Predict overlapping windows of"
    " patch_zyx, average them with Gaussian weights of sigma a quarter of a side; interpolate back; liver above 0.5,"
    f" lesions where tumour exceeds tumour_threshold, as far as it exceeds {OUTLINE_SHARE:g} of that in the liver."
)


def write_onnx(models: Sequence[Model], path: Path) -> None:
    """Write the networks of an ensemble as one graph, `image` 1 1 d h w to `probability` 1 2 d h w.

    The graph takes a preprocessed window. The metadata holds model.json, with the preprocessing plan, window and
    thresholds, and a text on what to do with them. Raises DataError if onnxscript is not installed.
    """
    try:
        import onnxscript  # noqa: F401  # by torch
    except ImportError:
        raise DataError("onnxscript is not installed: pip install 'hepar[onnx]'") from None
    from hepar.evaluation.research_use import RESEARCH_USE

    network, window_bcdhw = MeanNetwork(models).cpu().eval(), example_window(models)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own internals
        program = torch.onnx.export(
            network, (window_bcdhw,), dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
        )
    assert program is not None  # with dynamo there is one
    program.model.metadata_props.update(
        {
            SPEC: json.dumps(models[0].spec.model_dump(mode="json")),
            VERSION: __version__,
            USE: RESEARCH_USE,
            STEPS: HOW_TO,
        }
    )
    with whole_file(path) as partial:
        program.save(str(partial), external_data=False)
