"""Digital abdomens in CT and MR, with livers, tumours and confounders, as a partially labelled cohort."""

from hepar.phantoms.cohort import FULLY_LABELLED, PARTIALLY_LABELLED, CaseLabels, CohortDesign, write_phantoms
from hepar.phantoms.phantom import Phantom, make_phantom

__all__ = [
    "FULLY_LABELLED",
    "PARTIALLY_LABELLED",
    "CaseLabels",
    "CohortDesign",
    "Phantom",
    "make_phantom",
    "write_phantoms",
]
