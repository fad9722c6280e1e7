"""What people decided about pseudo-livers: a list that only grows, and the masks that they corrected.

A reviews folder holds `decisions.jsonl`, one decision a line, and `masks/<sha256>.nii.gz`. Of a case the last decision
counts. Accepting and rejecting is about one mask: when a teacher has drawn another one since, the decision is void. A
corrected mask stays valid as long as the image is the same.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from hepar.artifacts import sha256_file, sha256_json
from hepar.cases import Case, parse_enum
from hepar.errors import DataError, StorageError

LOG, MASKS = "decisions.jsonl", "masks"


class Decision(StrEnum):
    ACCEPT = "accept"
    REJECT = "reject"
    CORRECT = "correct"


@dataclass(frozen=True)
class Review:
    """One decision. `judged_sha256` is of the pseudo-liver that was looked at, `mask_sha256` of the corrected one."""

    case_id: str
    decision: Decision
    who: str
    when: str  # UTC, ISO 8601
    image_sha256: str
    judged_sha256: str
    mask_sha256: str = ""

    @property
    def in_words(self) -> str:
        verbs = {Decision.ACCEPT: "accepted", Decision.REJECT: "rejected", Decision.CORRECT: "corrected"}
        return f"{verbs[self.decision]} by {self.who}, {self.when}"


@dataclass(frozen=True)
class Reviews:
    """The last decision of each case, and the folder that it comes from."""

    folder: Path
    of_case: dict[str, Review]

    @classmethod
    def load(cls, folder: Path) -> Reviews:
        """Read a reviews folder. Raises DataError naming file, line and what is wrong with it."""
        log = folder / LOG
        if not log.is_file():
            raise DataError(f"{folder} holds no reviews: {LOG} is missing")
        found: dict[str, Review] = {}
        for number, line in enumerate(log.read_text().splitlines(), start=1):
            try:
                values = json.loads(line)
                review = Review(**values)
            except (ValueError, TypeError):
                raise DataError(f"{log}, line {number}: it is no decision") from None
            decision = parse_enum(Decision, review.decision, case_id=review.case_id, column="decision")
            found[review.case_id] = Review(**{**values, "decision": decision})
        return cls(folder, found)

    @property
    def hash(self) -> str:
        """Of the decisions that count."""
        return sha256_json([asdict(review) for _, review in sorted(self.of_case.items())])

    def of(self, case: Case, pseudo_sha256: str) -> Review | None:
        """The decision that holds for a case and its present pseudo-liver, None where there is none or it is void."""
        review = self.of_case.get(case.case_id)
        if review is None or review.image_sha256 != case.image_sha256:
            return None
        about_another = review.decision != Decision.CORRECT and review.judged_sha256 != pseudo_sha256
        return None if about_another else review

    def corrected_mask(self, review: Review) -> Path:
        """The mask of a correction. Raises DataError where it is missing or is not the one that was given."""
        path = self.folder / MASKS / f"{review.mask_sha256}.nii.gz"
        if not path.is_file() or sha256_file(path) != review.mask_sha256:
            raise DataError(f"case {review.case_id}: the corrected mask {path} is missing or was changed")
        return path


NO_REVIEWS = Reviews(Path(), {})


def append(folder: Path, review: Review) -> None:
    """Add a decision to the list; it is on the disk when this returns. Raises StorageError where it does not fit."""
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps({item.name: str(getattr(review, item.name)) for item in fields(Review)}) + "\n"
    descriptor = os.open(folder / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        before, data = os.fstat(descriptor).st_size, line.encode()
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, before)
            raise StorageError(f"{folder / LOG}: {error.strerror}, the decision is not saved") from None
    finally:
        os.close(descriptor)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def void(reviews: Reviews, cases: Iterable[Case], pseudo_sha256: dict[str, str]) -> list[Review]:
    """Decisions that no longer hold, since a teacher has drawn another mask or the image is another."""
    by_id = {case.case_id: case for case in cases}
    return [
        review
        for case_id, review in sorted(reviews.of_case.items())
        if case_id in by_id and reviews.of(by_id[case_id], pseudo_sha256.get(case_id, "")) is None
    ]
