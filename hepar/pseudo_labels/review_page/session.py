"""A review session: the queue of one folder of pseudo-labels, and the decisions of one reviewer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import Conflict, NotFound

from hepar.errors import DataError
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.pseudo_labels.review_page.corrections import store_mask
from hepar.pseudo_labels.review_page.queue import QueueItem, describe, read_queue
from hepar.pseudo_labels.reviews import Review, ReviewDecision, Reviews, append_review, utc_now
from hepar.runtime.scratch import scratch_folder

FILE_NAME = re.compile(r"^([a-z]+)\.nii\.gz$")


class ReviewSession:
    """Raises ArtifactError if `cohort` or `pseudo` is not such an artifact, or if they do not belong together."""

    def __init__(self, cohort: Path, pseudo: Path, reviews: Path, reviewer: str) -> None:
        self.labels = PseudoLabels.load(pseudo)
        self.queue = read_queue(cohort, self.labels)
        self.reviews = reviews
        self.reviewer = reviewer

    def item(self, case_id: str) -> QueueItem:
        """A case of the queue. Raises Conflict if the pseudo-labels were replaced, NotFound for an unknown case."""
        if PseudoLabels.load(self.labels.folder).manifest.hash != self.labels.manifest.hash:
            raise Conflict("the pseudo-labels have been replaced: stop `hepar review` and start it again")
        if case_id not in self.queue:
            raise NotFound(f"case {case_id} has no pseudo-liver")
        return self.queue[case_id]

    def describe_all(self) -> list[dict[str, Any]]:
        """All cases, in the order of the queue."""
        reviews = Reviews.so_far(self.reviews)
        return [describe(item, reviews) for item in self.queue.values()]

    def file(self, case_id: str, name: str) -> Path:
        """The file of a case with one of the names in `QueueItem.files`, or its `corrected` mask.

        `name` ends in `.nii.gz`. Raises NotFound if the case has no such file.
        """
        item, found = self.item(case_id), FILE_NAME.match(name)
        if found and found[1] == "corrected":
            reviews = Reviews.so_far(self.reviews)
            review = reviews.find(item.case, item.row["mask_sha256"])
            if review is not None and review.mask_sha256:
                return reviews.corrected_mask(review)
        path = item.files.get(found[1]) if found else None
        if path is None:
            raise NotFound(f"case {case_id} has no file {name}")
        return path

    def decide(self, case_id: str, decision: str) -> dict[str, Any]:
        """Save `accept` or `reject`, and describe the case. Raises NotFound for any other decision."""
        if decision not in (ReviewDecision.ACCEPT, ReviewDecision.REJECT):
            raise NotFound(f"decision is {decision!r} but must be accept or reject")
        return self._save(self.item(case_id), ReviewDecision(decision))

    def correct(self, case_id: str, upload: FileStorage) -> dict[str, Any]:
        """Save a corrected mask, and describe the case. Raises DataError if the mask does not fit the image."""
        item, name = self.item(case_id), upload.filename or "the upload"
        with scratch_folder("upload") as scratch:
            path = scratch / ("mask.nii" if name.lower().endswith(".nii") else "mask.nii.gz")
            upload.save(path)
            try:
                digest = store_mask(item, path, self.reviews / Reviews.MASKS)
            except DataError as error:
                raise DataError(str(error).replace(str(path), name)) from None
        return self._save(item, ReviewDecision.CORRECT, digest)

    def _save(self, item: QueueItem, decision: ReviewDecision, mask_sha256: str = "") -> dict[str, Any]:
        reviews = Reviews.so_far(self.reviews)  # raises before anything is appended to a damaged log
        earlier = reviews.find(item.case, item.row["mask_sha256"])
        if decision == ReviewDecision.ACCEPT and earlier is not None and earlier.decision == ReviewDecision.CORRECT:
            decision, mask_sha256 = ReviewDecision.CORRECT, earlier.mask_sha256  # the page shows the corrected mask
        review = Review(
            case_id=item.case.case_id,
            decision=decision,
            who=self.reviewer,
            when=utc_now(),
            image_sha256=item.case.image_sha256,
            judged_sha256=item.row["mask_sha256"],
            mask_sha256=mask_sha256,
        )
        append_review(self.reviews, review)
        return describe(item, Reviews.so_far(self.reviews))
