"""How a scan is predicted: overlap of windows, test-time augmentation, and what counts as a tumour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from hepar.inference.defaults import MIN_LESION_ML, OUTLINE_SHARE, OVERLAP, TUMOUR_THRESHOLD, VARIANTS

if TYPE_CHECKING:
    from hepar.inference.model_folder import ModelSpec  # brings torch, which a report does not need
    from hepar.params import EvaluateParams


class Axis(StrEnum):
    """An axis of a canonical scan: z to the head, y to the back, x to the patient's left."""

    Z = "z"
    Y = "y"
    X = "x"


@dataclass(frozen=True)
class OperatingPoint:
    """What counts as a tumour: the probability that a lesion exceeds somewhere, and its smallest volume above that.

    The lesion reaches in the liver as far as `outline_threshold` is exceeded.
    """

    tumour_threshold: float = TUMOUR_THRESHOLD
    min_lesion_ml: float = MIN_LESION_ML

    @property
    def outline_threshold(self) -> float:
        """The probability that every voxel of a lesion exceeds."""
        return OUTLINE_SHARE * self.tumour_threshold


@dataclass(frozen=True)
class PredictionSettings:
    """How a model predicts a scan.

    `variants` are test-time variants of size, contrast and brightness, the plain one included. Each is predicted as it
    is and mirrored along every combination of `mirror_axes`; the mean counts. A threshold or volume of None is the
    model's own, see `ModelSpec`.
    """

    overlap: float = OVERLAP
    variants: int = VARIANTS
    mirror_axes: tuple[Axis, ...] = ()
    tumour_threshold: float | None = None
    min_lesion_ml: float | None = None

    @classmethod
    def from_params(cls, params: EvaluateParams) -> PredictionSettings:
        """The settings of an evaluation."""
        mirror_axes = tuple(Axis(name) for name in params.mirror_axes)
        return cls(params.overlap, params.variants, mirror_axes, params.tumour_threshold, params.min_lesion_ml)

    def operating_point(self, spec: ModelSpec) -> OperatingPoint:
        """Threshold and smallest lesion, with the model's own in place of None."""
        return OperatingPoint(
            spec.tumour_threshold if self.tumour_threshold is None else self.tumour_threshold,
            spec.min_lesion_ml if self.min_lesion_ml is None else self.min_lesion_ml,
        )

    def for_model(self, spec: ModelSpec) -> PredictionSettings:
        """The settings without None, as a report records them."""
        return replace(self, **asdict(self.operating_point(spec)))

    @property
    def left_to_model(self) -> tuple[str, ...]:
        """The names of the settings that are None."""
        return tuple(name for name, value in asdict(self).items() if value is None)

    def facts(self) -> dict[str, str]:
        """The settings as texts, by field; None and no axis are empty."""
        values = {name: "" if value is None else str(value) for name, value in asdict(self).items()}
        return values | {"mirror_axes": "".join(self.mirror_axes)}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> PredictionSettings:
        """The settings from texts or numbers, by field; a missing one has its default.

        Raises ValueError if a number or an axis cannot be read.
        """
        point = {name: facts.get(name) for name in ("tumour_threshold", "min_lesion_ml")}
        return cls(
            overlap=float(facts.get("overlap", OVERLAP)),
            variants=int(facts.get("variants", VARIANTS)),
            mirror_axes=tuple(Axis(name) for name in facts.get("mirror_axes", "")),
            **{name: None if value in (None, "") else float(value) for name, value in point.items()},
        )
