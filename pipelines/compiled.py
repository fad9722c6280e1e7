"""A compiled pipeline as a file: read strictly, with its images, and what its inputs become for given overrides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hepar.errors import ParamsError, one_line
from hepar.params import PipelineParams, dump_sections, read_pipeline_params
from hepar.runtime.artifacts import sha256_file

SECTIONS = frozenset(field.alias or name for name, field in PipelineParams.model_fields.items())
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is many times as fast


@dataclass(frozen=True)
class CompiledPipeline:
    """`defaults` are those of the inputs that have one; `inputs` are the names of all."""

    path: Path
    name: str
    images: tuple[str, ...]
    inputs: frozenset[str]
    defaults: Mapping[str, Any]

    @property
    def version(self) -> str:
        """A name for this version of the pipeline: the same file has the same."""
        return sha256_file(self.path)[:16]

    @classmethod
    def load(cls, path: Path) -> CompiledPipeline:
        """Read a file that `make compile` wrote. Raises ParamsError unless it is a pipeline without unknown fields."""
        from google.protobuf import json_format
        from kfp.pipeline_spec import pipeline_spec_pb2

        try:
            documents = list(yaml.load_all(path.read_text(), LOADER))
            spec, *platforms = documents
            json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
            for platform in platforms:
                json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
            given = spec["root"].get("inputDefinitions", {}).get("parameters", {})
            executors = spec["deploymentSpec"]["executors"].values()
            images = {executor["container"]["image"] for executor in executors if "container" in executor}
            name = str(spec["pipelineInfo"]["name"])
        except FileNotFoundError:
            raise ParamsError(f"{path} does not exist; 'make compile' writes one") from None
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError, json_format.ParseError) as error:
            raise ParamsError(f"{path} is no compiled pipeline: {one_line(error)}; 'make compile' writes one") from None
        defaults = {key: value["defaultValue"] for key, value in given.items() if "defaultValue" in value}
        return cls(path, name, tuple(sorted(images)), frozenset(given), defaults)

    def arguments(self, overrides: Mapping[str, Any]) -> tuple[PipelineParams, dict[str, Any]]:
        """The params of a run with overrides, and the inputs to pass: each changed section, and other inputs by name.

        Overrides are keyed as in a params file, by dotted names, or by an input that is no section. Raises ParamsError
        naming key and value for what the params refuse, and for an input without default that is not given.
        """
        further = {key: value for key, value in overrides.items() if key in self.inputs - SECTIONS}
        sections = {key: value for key, value in self.defaults.items() if key in SECTIONS}
        required = self.inputs - self.defaults.keys()
        if missing := sorted(required - overrides.keys()):
            raise ParamsError(f"{self.path} has no default for {missing[0]}: pass --set {missing[0]}=…")
        sections |= {key: overrides[key] for key in required & SECTIONS}
        changes = {key: value for key, value in overrides.items() if key not in further.keys() | required}
        params = read_pipeline_params(sections, changes)
        params.train_liver.check_compiled(int(sections["train_liver"]["folds"]), str(self.path))
        values = dump_sections(params)
        changed = {key: values[key] for key in values if key in required or values[key] != sections[key]}
        if fixed := sorted(changed.keys() - self.inputs):
            raise ParamsError(f"{self.path} takes no {fixed[0]}: compile it with other params")
        return params, {**changed, **further}
