"""hepar: one universal liver-tumour segmentation model for CT and MR, out of labels that do not agree."""

import os

# How often an idle thread of GNU OpenMP looks for work before it sleeps; read when torch loads, so it is set before.
# By default it looks so long that processes that share cores wait for each other's idle threads, and a thread that
# sleeps at once comes late to the next of a network's many short operations: training takes half as long again
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
