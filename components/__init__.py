"""One thin KFP component per stage, which translates its arguments, and versions of the pool on top of DVC."""

import os

IMAGE = os.environ.get("HEPAR_IMAGE", "hepar:latest")  # on a cluster a digest, because it is part of the cache key
