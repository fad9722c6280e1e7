"""A trained model as a bundle that MONAI's own runner runs, without hepar."""

from __future__ import annotations

import inspect
import shutil
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hepar import __version__
from hepar.evaluation.research_use import RESEARCH_USE
from hepar.export.mean_network import MeanNetwork, example_window
from hepar.imaging import intensities
from hepar.inference.defaults import OVERLAP
from hepar.inference.model_folder import ModelFolder, ModelSpec
from hepar.inference.prediction import Model
from hepar.inference.settings import OperatingPoint
from hepar.inference.sliding_window import SIGMA
from hepar.runtime.artifacts import write_json
from hepar.runtime.whole_files import write_text

MODELS, NETWORK = "models", "model.pt2"
METADATA, INFERENCE = "configs/metadata.json", "configs/inference.json"
HEPAR_MODEL = "models/hepar"  # the model folder, for `hepar predict --model BUNDLE`
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
ORIENTATION = "SPL"  # z to the head, y to the back, x to the left: LPS with the axes z y x


def write_bundle(models: Sequence[Model], model: Path, folder: Path) -> None:
    """Write a bundle into an existing folder: configs, networks, the code of its transforms, and the model folder."""
    spec = models[0].spec
    network, window_bcdhw = MeanNetwork(models).cpu().eval(), example_window(models)
    (folder / MODELS).mkdir()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.export, about its own internals
        torch.export.save(torch.export.export(network, (window_bcdhw,)), folder / MODELS / NETWORK)
    shutil.copytree(model, folder / HEPAR_MODEL)
    _write_scripts(folder / "scripts")
    write_json(folder / METADATA, metadata(spec))
    write_json(folder / INFERENCE, inference(spec))


def _write_scripts(folder: Path) -> None:
    """The code that the configs name, as it is in hepar, but for where it imports from."""
    from hepar.export import bundle_transforms

    write_text(folder / "__init__.py", "from . import transforms\n")
    write_text(folder / "intensities.py", inspect.getsource(intensities))
    own = inspect.getsource(bundle_transforms).replace("from hepar.imaging.intensities", "from .intensities")
    write_text(folder / "transforms.py", own)


def metadata(spec: ModelSpec) -> dict[str, Any]:
    """`metadata.json` of the bundle."""
    patch_zyx = list(spec.patch_zyx)
    window = {"type": "image", "format": "magnitude", "spatial_shape": patch_zyx, "dtype": "float32"}
    channels = {"0": "whole liver", "1": "tumour"}
    return {
        "schema": SCHEMA,
        "version": __version__,
        "changelog": {__version__: "exported by hepar"},
        "monai_version": version("monai"),
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version(name) for name in ("nibabel", "scipy")},
        "task": "liver and liver-tumour segmentation in CT and MR",
        "description": f"A universal model trained with hepar. {RESEARCH_USE}",
        "authors": "hepar",
        "copyright": "that of the data it was trained on",
        "intended_use": RESEARCH_USE,
        "network_data_format": {
            "inputs": {
                "image": {
                    **window,
                    "num_channels": 1,
                    "value_range": [-3, 5],
                    "is_patch_data": True,
                    "channel_def": {"0": "preprocessed scan, axes z y x"},
                }
            },
            "outputs": {
                "pred": {
                    **window,
                    "format": "probability",
                    "num_channels": 2,
                    "value_range": [0, 1],
                    "is_patch_data": True,
                    "channel_def": channels,
                }
            },
        },
        "hepar": spec.model_dump(mode="json"),
    }


def inference(spec: ModelSpec) -> dict[str, Any]:
    """`inference.json` of the bundle: `image`, `modality`, `output_dir`, `overlap` and `device` can be overridden."""
    plan = spec.plan
    spacing_zyx_mm = list(plan.spacing_zyx_mm)
    return {
        "imports": ["$import scripts", "$import torch"],
        "bundle_root": ".",
        "image": "scan.nii.gz",
        "modality": str(spec.modalities[0]),
        "output_dir": "$@bundle_root + '/eval'",
        "overlap": OVERLAP,
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network": f"$torch.export.load(@bundle_root + '/{MODELS}/{NETWORK}').module().to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": ORIENTATION, "labels": None},
                {"_target_": "scripts.transforms.SmoothBeforeSpacingd", "keys": "image", "pixdim": spacing_zyx_mm},
                {
                    "_target_": "Spacingd",
                    "keys": "image",
                    "pixdim": spacing_zyx_mm,
                    "mode": "bilinear",
                    "padding_mode": "border",
                    "scale_extent": True,
                },
                {
                    "_target_": "scripts.transforms.ScaleIntensitiesd",
                    "keys": "image",
                    "modality": "@modality",
                    "window_hu": list(plan.window_hu),
                    "mr_percentiles": list(plan.mr_percentiles),
                    "mr_scale": plan.mr_scale,
                },
            ],
        },
        "dataset": {"_target_": "Dataset", "data": [{"image": "@image"}], "transform": "@preprocessing"},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(spec.patch_zyx),
            "sw_batch_size": 1,
            "overlap": "@overlap",
            "mode": "gaussian",
            "sigma_scale": SIGMA,
            "padding_mode": "replicate",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {
                    "_target_": "scripts.transforms.LabelMapd",
                    "keys": "pred",
                    "tumour_threshold": spec.tumour_threshold,
                    "outline_threshold": OperatingPoint(spec.tumour_threshold).outline_threshold,
                    "min_lesion_ml": spec.min_lesion_ml,
                    "taught": list(spec.taught),
                },
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "labels",
                    "output_ext": ".nii.gz",
                    "output_dtype": "$torch.uint8",
                    "resample": False,
                    "separate_folder": False,
                },
            ],
        },
        "run": ["$scripts.transforms.run(@dataset, @network, @inferer, @postprocessing, @device)"],
    }


def model_in(place: Path) -> Path:
    """The model folder of an exported bundle, or the folder itself if it is none."""
    inside = place / HEPAR_MODEL
    return inside if (place / METADATA).is_file() and (inside / ModelFolder.SPEC).is_file() else place
