"""Which image runs a step: `data`, which has no torch, or `compute`; on a cluster both by digest.

HEPAR_IMAGE names one image for every step. Otherwise HEPAR_IMAGES names the file that `make images PUSH=HOST/NAME`
writes, with the digest of each image in the registry. Without either, steps run in `hepar:latest` of this machine.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from hepar.errors import ParamsError, one_line
from hepar.runtime.environment import DEFAULT_IMAGE, IMAGE_VARIABLE

IMAGES_VARIABLE = "HEPAR_IMAGES"  # the file with the digests
DATA, COMPUTE = "data", "compute"  # the targets of containers/Dockerfile
DATA_STEPS = ("ingest", "assemble-pool")  # those that import no torch
BY_DIGEST = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}")


def image_of(step: str) -> str:
    """The image of a step, by its name or that of its component; raises ParamsError for a file without digests."""
    if one_for_all := os.environ.get(IMAGE_VARIABLE):
        return one_for_all
    if not (file := os.environ.get(IMAGES_VARIABLE)):
        return DEFAULT_IMAGE
    return read_images(Path(file))[DATA if step.replace("_", "-") in DATA_STEPS else COMPUTE]


def read_images(path: Path) -> dict[str, str]:
    """The images of a file by target. Raises ParamsError unless it names each by digest."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ParamsError(f"{IMAGES_VARIABLE} is {path}, which cannot be read: {one_line(error)}") from None
    images = found if isinstance(found, Mapping) else {}
    for target in (DATA, COMPUTE):
        if not is_by_digest(str(images.get(target, ""))):
            raise ParamsError(f"{path}: {target} is {images.get(target)!r}, but must be NAME@sha256:…")
    return {target: str(images[target]) for target in (DATA, COMPUTE)}


def is_by_digest(image: str) -> bool:
    """Whether an image is named by its digest, so that the name always means the same image."""
    return BY_DIGEST.fullmatch(image) is not None


def check_digests(images: Iterable[str]) -> None:
    """Raise ParamsError for an image without a digest: another image may get its tag while a run lasts."""
    for image in sorted(set(images)):
        if not is_by_digest(image):
            raise ParamsError(
                f"image {image} is named by a tag, but a cluster needs a digest: push it by 'make images"
                f" PUSH=HOST/NAME' and set {IMAGES_VARIABLE}=build/images.json, or {IMAGE_VARIABLE}=NAME@sha256:…"
            )
