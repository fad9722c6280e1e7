"""One thin KFP component per stage. They translate, they do not think."""

import os

IMAGE = os.environ.get("HEPAR_IMAGE", "hepar:latest")  # on a cluster by digest, since it is part of the cache key
