"""How well two experts agree: the ceiling of what a model can be measured to reach.

Only what the literature has: Gross et al., "LiverHccSeg: A publicly available multiphasic MRI dataset with liver and
HCC tumor segmentations and inter-rater agreement analysis", Data in Brief 51, 2023, 109662 (PMC10587725), gives the
mean Dice of two radiologists with its standard deviation, for 17 livers and 14 hepatocellular carcinomas in MR.
"""

from __future__ import annotations

from dataclasses import dataclass

CITATION = (
    "Gross et al., LiverHccSeg, Data in Brief 51, 2023, 109662: two radiologists, 17 livers and 14 hepatocellular"
    " carcinomas in MR"
)


@dataclass(frozen=True)
class InterRaterDice:
    """Mean Dice of two experts, and its standard deviation over cases."""

    mean: float
    deviation: float

    @property
    def band(self) -> tuple[float, float]:
        """One standard deviation to both sides, at most 1."""
        return self.mean - self.deviation, min(1.0, self.mean + self.deviation)


INTER_RATER_DICE = {  # by modality and structure
    ("MR", "liver"): InterRaterDice(0.95, 0.01),
    ("MR", "tumour"): InterRaterDice(0.85, 0.16),
}
