"""Digital abdomens in CT and MR with livers, tumours, confounders, and labels that do not agree."""

from hepar.phantoms.cohort import PATTERN, TEACHING, Labels, write_phantoms
from hepar.phantoms.make import Phantom, make_phantom

__all__ = ["PATTERN", "TEACHING", "Labels", "Phantom", "make_phantom", "write_phantoms"]
