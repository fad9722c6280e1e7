"""Review decisions where a params file names them: a folder, or a prefix in S3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hepar.ingest.sources.s3 import Buckets
from hepar.pseudo_labels.reviews import NO_REVIEWS, Reviews
from hepar.runtime.s3_client import SCHEME
from hepar.runtime.scratch import scratch_folder


@contextmanager
def open_reviews(place: str) -> Iterator[Reviews]:
    """The reviews in a folder or bucket; none if `place` is empty. Masks from a bucket are there within the block.

    Raises DataError if there is no log or it is damaged.
    """
    if not place:
        yield NO_REVIEWS
    elif place.startswith(SCHEME):
        with scratch_folder("reviews") as scratch:
            yield Reviews.load(Buckets(scratch).fetch(place))
    else:
        yield Reviews.load(Path(place))
