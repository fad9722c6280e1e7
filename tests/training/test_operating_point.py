"""The operating point: toy cases for which it follows by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_model import toy_spec
from toy_pool import Ball, Toy, ball, toy_pool

from hepar.cases import STRUCTURES, LabelState, Modality
from hepar.evaluation.lesions import LesionCounts
from hepar.evaluation.overlap import OverlapCounts
from hepar.inference.settings import OperatingPoint
from hepar.params import NetworkParams
from hepar.training.operating_point import Outcome, choose_operating_point, score

SHAPE = (24, 24, 24)
LARGE, SMALL = 4.0, 2.0  # radii in voxels of 0.008 ml: 257 voxels, 2.06 ml; 33 voxels, 0.264 ml
CENTRE, OUTSIDE = (12, 12, 12), (4, 4, 4)
LIVER, TUMOUR = 1, -1  # values in the image of the case with a tumour
HEALTHY_LIVER, LOOK_ALIKE, LOOK_ALIKE_OUTSIDE = 11, 9, 8  # and of the tumour-free case


def with_tumour(radius: float = LARGE) -> Toy:
    return Toy("tumour", lesions=((CENTRE, radius),))


def tumour_free(radius: float = LARGE, centre: tuple[int, int, int] = CENTRE) -> Toy:
    """A case whose image shows something like a lesion, although an expert saw no tumour."""
    return Toy("healthy", tumour_state=LabelState.ABSENT, level=10, lesions=((centre, radius),))


class Lookup(nn.Module):
    """Predicts a tumour with a probability by the value of a voxel, and liver in all livers."""

    def __init__(self, tumour_by_value: Mapping[int, float]) -> None:
        super().__init__()
        self.tumour_by_value = tumour_by_value
        self.eval()

    def forward(self, image_bcdhw: Tensor) -> Tensor:
        tumour_bcdhw = torch.full_like(image_bcdhw, 0.01)
        for value, probability in self.tumour_by_value.items():
            tumour_bcdhw[image_bcdhw == value] = probability
        liver_bcdhw = torch.full_like(image_bcdhw, 0.01)
        for value in (LIVER, HEALTHY_LIVER):
            liver_bcdhw[image_bcdhw == value] = 0.99
        return torch.logit(torch.cat([liver_bcdhw, tumour_bcdhw], dim=1))


class Painted(nn.Module):
    """Predicts liver and tumours where they are painted, whatever the image."""

    def __init__(self, liver: Ball, tumours: Mapping[Ball, float]) -> None:
        super().__init__()
        self.probability_rdhw = torch.full((2, *SHAPE), 0.01)
        self.probability_rdhw[0][torch.from_numpy(ball(SHAPE, *liver))] = 0.99
        for place, probability in tumours.items():
            self.probability_rdhw[1][torch.from_numpy(ball(SHAPE, *place))] = probability
        self.eval()

    def forward(self, image_bcdhw: Tensor) -> Tensor:
        return torch.logit(self.probability_rdhw).expand(len(image_bcdhw), -1, -1, -1, -1)


def choose(
    folder: Path, toys: Sequence[Toy], *networks: nn.Module, taught: Sequence[str] = STRUCTURES, **spec: Any
) -> OperatingPoint:
    pool, toy = toy_pool(folder, toys), toy_spec(NetworkParams(name="none", config={}))
    chosen_for = toy.model_copy(update={"patch_zyx": SHAPE, "taught": tuple(taught), **spec})
    return choose_operating_point(networks, pool, pool.entries, chosen_for, torch.device("cpu"), "fp32")


def test_the_threshold_separates_a_tumour_from_what_looks_like_one(tmp_path: Path) -> None:
    network = Lookup({TUMOUR: 0.65, LOOK_ALIKE: 0.55})
    assert choose(tmp_path, [with_tumour(), tumour_free()], network) == OperatingPoint(0.6, 0.1)


def test_the_smallest_volume_drops_a_small_look_alike(tmp_path: Path) -> None:
    network = Lookup({TUMOUR: 0.65, LOOK_ALIKE: 0.95})
    # 0.5 and 1 ml drop its 0.264 ml; 0.5 is nearer to the default
    assert choose(tmp_path, [with_tumour(), tumour_free(SMALL)], network) == OperatingPoint(0.5, 0.5)


def test_a_small_tumour_is_kept(tmp_path: Path) -> None:
    network = Lookup({TUMOUR: 0.45})
    assert choose(tmp_path, [with_tumour(SMALL)], network) == OperatingPoint(0.4, 0.1)


def test_a_missed_lesion_far_from_any_prediction_counts(tmp_path: Path) -> None:
    sure, unsure, missed = ((15, 15, 11), SMALL), ((15, 15, 19), SMALL), (OUTSIDE, LARGE)
    network = Painted(((15, 15, 15), 7.0), {sure: 0.9, unsure: 0.55, ((15, 9, 15), LARGE): 0.55})
    # at 0.5 the Dice is 2·66/(323 + 323) = 0.204 and F1 4/6, at 0.6 they are 2·33/(323 + 33) = 0.185 and 2/4; without
    # the 257 voxels of the missed lesion it would be 0.339 and 4/5 against 0.667 and 2/3
    toy = Toy("missed", lesions=(sure, unsure, missed))
    assert choose(tmp_path, [toy], network) == OperatingPoint(0.5, 0.1)
    assert choose(tmp_path, [Toy("found", lesions=(sure, unsure))], network) == OperatingPoint(0.6, 0.1)


def test_networks_are_averaged(tmp_path: Path) -> None:
    one, other = Lookup({TUMOUR: 0.95, LOOK_ALIKE: 0.95}), Lookup({TUMOUR: 0.55, LOOK_ALIKE: 0.15})
    toys = [with_tumour(), tumour_free()]
    assert choose(tmp_path / "one", toys, one) == OperatingPoint(0.5, 0.1)  # nothing separates the two
    assert choose(tmp_path / "both", toys, one, other) == OperatingPoint(0.6, 0.1)  # 0.75 and 0.55


def test_outside_the_liver_there_is_no_tumour_unless_no_liver_was_taught(tmp_path: Path) -> None:
    network = Lookup({TUMOUR: 0.65, LOOK_ALIKE_OUTSIDE: 0.55})
    toys = [with_tumour(), tumour_free(LARGE, OUTSIDE)]
    assert choose(tmp_path / "both", toys, network) == OperatingPoint(0.5, 0.1)
    assert choose(tmp_path / "tumour", toys, network, taught=("tumour",)) == OperatingPoint(0.6, 0.1)


def test_the_liver_is_chosen_as_in_a_prediction(tmp_path: Path) -> None:
    liver, false, tumour = ((17, 17, 17), 4.0), ((6, 6, 6), 5.0), ((17, 17, 17), 2.0)
    network = Painted(liver, {tumour: 0.45})
    network.probability_rdhw[0][torch.from_numpy(ball(SHAPE, *false))] = 0.99  # larger, and as bright as no liver
    toy = Toy("trunk", liver=liver, lesions=(tumour,))
    assert choose(tmp_path / "unknown", [toy], network) == OperatingPoint()  # the tumour is never in the liver
    known = {Modality.CT: (float(LIVER), 0.1)}
    assert choose(tmp_path / "known", [toy], network, liver_intensity=known) == OperatingPoint(0.4, 0.1)


@pytest.mark.parametrize(
    ("toy", "taught"),
    [
        (Toy("unknown", tumour_state=LabelState.UNKNOWN, level=10), STRUCTURES),
        (Toy("vanished", level=10, lesions=()), STRUCTURES),
        (with_tumour(), ("liver",)),
    ],
)
def test_without_a_case_that_tells_it_is_the_default(tmp_path: Path, toy: Toy, taught: Sequence[str]) -> None:
    network = Lookup({TUMOUR: 0.35, LOOK_ALIKE: 0.75, HEALTHY_LIVER: 0.75})
    assert choose(tmp_path, [toy], network, taught=taught) == OperatingPoint()


def test_the_score_is_the_mean_of_dice_lesion_f1_and_tumour_free_cases() -> None:
    one = Outcome(OverlapCounts(10, 10, 9), LesionCounts(2, 1, 0), predicted_ml=1.0)
    other = Outcome(OverlapCounts(10, 10, 3), LesionCounts(1, 0, 0), predicted_ml=1.0)
    healthy = Outcome(OverlapCounts(0, 40, 0), LesionCounts(0, 0, 2), predicted_ml=15.0)
    assert score([one, other, healthy]) == pytest.approx((0.6 + 6 / 9 + 1 / 4) / 3)
    assert score([one, other]) == pytest.approx((0.6 + 6 / 7) / 2)
    assert score([healthy]) == pytest.approx(1 / 4)
    assert score([]) == 0
