"""Presets made as small as `params/tiny.yaml`, at the paths that the README names."""

from __future__ import annotations

from pathlib import Path

import yaml
from conftest import ROOT, TINY

from hepar.params import dump_params, load_params

PRESETS = ("params.yaml", *(f"params/{path.name}" for path in sorted((ROOT / "params").glob("*.yaml"))))


def write_shrunk_params(folder: Path) -> None:
    """Write each preset with its own names and warm start, and the sizes and gates of the tiny one."""
    tiny = dump_params(load_params(TINY))
    (folder / "params").mkdir()
    for name in PRESETS:
        own = dump_params(load_params(ROOT / name))
        values = {**tiny, **{key: own[key] for key in ("source", "experiment")}}
        values["register"] = {**own["register"], "gates": tiny["register"]["gates"]}
        warm_start = {"warm_start": own["train_universal"]["warm_start"]}
        values["train_universal"] = {**tiny["train_universal"], **warm_start}
        (folder / name).write_text(yaml.safe_dump(values))
