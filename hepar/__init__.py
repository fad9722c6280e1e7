"""hepar: one model that segments liver and liver tumours in CT and MR, trained on partially labelled data."""

import os

# How long an idle GNU OpenMP thread spins before it sleeps; torch reads it when it loads, so it is set here. The
# default is so long that processes on shared cores wait for each other's idle threads. Sleeping at once is no better:
# threads then wake late for each of a network's many short operations, and training takes half as long again.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
