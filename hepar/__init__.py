"""hepar: one universal liver-tumour segmentation model for CT and MR, out of labels that do not agree."""

import os

# OpenMP's idle threads spin by default, and with more processes than cores each waits for the spinning of the others;
# read when torch loads, so it is set before
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
