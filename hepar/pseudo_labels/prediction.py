"""One pseudo-liver: predicted by one or more teachers with test-time augmentation, post-processed and measured."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hepar.cases import LIVER, Case
from hepar.imaging.masks import Mask, body_mask, fill_holes
from hepar.imaging.preprocessing import preprocess_image
from hepar.imaging.volumes import Geometry, read_image, read_mask, resample_mask, to_array, to_image, write_image
from hepar.inference.liver_choice import choose_liver, component_of
from hepar.inference.liver_region import LIVER_THRESHOLD
from hepar.inference.prediction import Model, predict_variant, resample_probability
from hepar.params import PseudoLabelParams
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.pseudo_labels.signals import Evidence, Signals, measure
from hepar.runtime.fetching import fetched
from hepar.runtime.whole_files import write_text

SIGNALS_FILE = "signals.json"


@dataclass(frozen=True)
class PseudoLiver:
    """A pseudo-liver on its case's grid: the mask, its uncertain voxels (both bool zyx), and its signals.

    `votes_zyx` holds each prediction that it is made of, above `LIVER_THRESHOLD`, the one without augmentation first.
    """

    liver_zyx: Mask
    uncertain_zyx: Mask
    signals: Signals
    geometry: Geometry
    votes_zyx: Sequence[Mask]

    def save(self, folder: Path) -> None:
        """Write both masks and the signals into the folder `folder`, which appears only when it is complete."""
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        write_image(to_image(self.liver_zyx, self.geometry), partial / PseudoLabels.LIVER)
        write_image(to_image(self.uncertain_zyx, self.geometry), partial / PseudoLabels.UNCERTAIN)
        write_text(partial / SIGNALS_FILE, json.dumps(asdict(self.signals)))
        shutil.rmtree(folder, ignore_errors=True)  # part of one that was being fetched
        partial.rename(folder)


def load_signals(folder: Path) -> Signals:
    """The signals of a saved pseudo-liver."""
    return Signals(**json.loads((folder / SIGNALS_FILE).read_text()))


def predict_pseudo_liver(case: Case, folder: Path, teachers: Sequence[Model], params: PseudoLabelParams) -> PseudoLiver:
    """Predict the liver of a case of the cohort in `folder` with every teacher and every test-time variant.

    The mask is where the mean probability exceeds `LIVER_THRESHOLD`: the component that is most likely the liver, with
    holes filled; it may be empty. Memory: one probability map, and one byte per voxel and prediction.
    """
    image_file, tumour_file = folder / case.image, folder / case.tumour if case.tumour else None
    with fetched(image_file, tumour_file) as here:
        image = read_image(here[image_file])
        tumour_zyx = None if tumour_file is None else read_mask(here[tumour_file])
    own = Geometry.of(image)
    total_zyx, votes_zyx = np.zeros(own.size_zyx, np.float32), []
    for teacher in teachers:
        for variant in range(params.variants):
            probabilities_rzyx, grid = predict_variant([teacher], image, case.modality, params.overlap, variant)
            probability_zyx = resample_probability(probabilities_rzyx[LIVER], grid, own)
            total_zyx += probability_zyx
            votes_zyx.append(probability_zyx > LIVER_THRESHOLD)
    mean_zyx = total_zyx / np.float32(len(votes_zyx))
    raw_zyx: Mask = mean_zyx > LIVER_THRESHOLD
    preprocessed_zyx, grid = preprocess_image(image, case.modality, teachers[0].spec.plan)
    expected = teachers[0].spec.liver_intensity.get(case.modality)

    def chosen() -> Mask:
        found_zyx = resample_mask(to_image(raw_zyx, own), grid)
        return resample_mask(to_image(choose_liver(found_zyx, expected, lambda: preprocessed_zyx), grid), own)

    liver_zyx = fill_holes(component_of(raw_zyx, chosen))
    evidence = Evidence(
        probability_zyx=mean_zyx,
        votes_zyx=votes_zyx,
        raw_zyx=raw_zyx,
        liver_zyx=liver_zyx,
        tumour_zyx=tumour_zyx,
        body_zyx=body_mask(to_array(image), case.modality),
        intensity_n=preprocessed_zyx[resample_mask(to_image(liver_zyx, own), grid)],
        spacing_zyx_mm=own.spacing_zyx_mm,
    )
    low, high = params.uncertain
    uncertain_zyx = (mean_zyx > low) & (mean_zyx < high)
    signals = measure(evidence, expected)
    return PseudoLiver(liver_zyx, uncertain_zyx, signals, own, votes_zyx)
