"""One pseudo-liver: predicted by a teacher or an ensemble under test-time augmentation, cleaned, and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hepar.cases import LIVER, Case
from hepar.imaging.masks import Mask, body_mask, fill_holes, keep_largest_component
from hepar.imaging.preprocessing import preprocess_image
from hepar.imaging.volumes import Geometry, read_image, resample_mask, to_array, to_image
from hepar.inference.prediction import Model, predict_probabilities, to_grid
from hepar.params import PseudoLabelParams
from hepar.pseudo_labels.gates import Evidence, Signals, measure


@dataclass(frozen=True)
class PseudoMask:
    """A pseudo-liver on its case's grid, zyx: the mask, its uncertain boundary, and what is measured of it."""

    liver: Mask
    uncertain: Mask
    signals: Signals
    geometry: Geometry


def label_case(case: Case, folder: Path, teachers: Sequence[Model], params: PseudoLabelParams) -> PseudoMask:
    """Predict the liver of a case, whose files lie below `folder`, by every teacher and every variant.

    The mask is the mean probability cut at one half, its largest component, filled. What is kept at a time is one
    probability map and one byte a voxel for each prediction.
    """
    image = read_image(folder / case.image)
    own = Geometry.of(image)
    total, votes = np.zeros(own.size_zyx, np.float32), []
    for teacher in teachers:
        for variant in range(params.variants):
            probabilities, grid = predict_probabilities(teacher, image, case.modality, params.overlap, variant)
            liver = to_grid(probabilities[LIVER], grid, own)
            total += liver
            votes.append(liver > 0.5)
    mean = total / np.float32(len(votes))
    raw: Mask = mean > 0.5
    liver_mask = fill_holes(keep_largest_component(raw))
    prepared, grid = preprocess_image(image, case.modality, teachers[0].spec.plan)
    inside = prepared[resample_mask(to_image(liver_mask, own), grid)]
    evidence = Evidence(
        mean=mean,
        votes=votes,
        raw=raw,
        liver=liver_mask,
        tumour=np.asarray(to_array(read_image(folder / case.tumour)) > 0) if case.tumour else None,
        body=body_mask(to_array(image), case.modality),
        intensity=inside,
        spacing_zyx_mm=own.spacing_zyx_mm,
    )
    uncertain = (mean > params.uncertain[0]) & (mean < params.uncertain[1])
    return PseudoMask(liver_mask, uncertain, measure(evidence, teachers[0].spec.liver_intensity), own)
