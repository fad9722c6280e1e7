"""Gates, and the signals of a pseudo-liver that passes all of them."""

from __future__ import annotations

from hepar.params import GateParams
from hepar.pseudo_labels.signals import Signals

GATES = GateParams(
    volume_ml=(500.0, 3000.0),
    min_component_share=(0.8, 0.5),
    max_hole_share=(0.05, 0.2),
    max_roughness=(1.5, 3.0),
    min_right_share=(0.6, 0.3),
    max_cut_share=(0.1, 0.4),
    min_agreement=(0.9, 0.7),
    max_entropy=(0.5, 1.5),
    min_tumour_inside=(0.8, 0.5),
    max_intensity_distance=(3.0, 6.0),
    min_predicted_dice=(0.9, 0.8),
    predictor=None,
    review_weight=0.4,
)
GOOD = Signals(
    volume_ml=1500.0,
    component_share=1.0,
    hole_share=0.0,
    roughness=1.0,
    right_share=0.9,
    cut_share=0.0,
    agreement=1.0,
    entropy=0.1,
    tumour_inside=1.0,
    intensity_distance=0.0,
)
