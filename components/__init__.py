"""One thin KFP component per stage, which translates its arguments, and versions of the pool on top of DVC."""

import os

from hepar.runtime.environment import DEFAULT_IMAGE, IMAGE_VARIABLE

IMAGE = os.environ.get(IMAGE_VARIABLE, DEFAULT_IMAGE)  # on a cluster a digest, because it is part of the cache key
