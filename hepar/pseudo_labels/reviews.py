"""Review decisions on pseudo-livers: an append-only log, and the corrected masks.

A reviews folder holds `decisions.jsonl`, one decision per line, and `masks/<sha256>.nii.gz`. The last decision on a
case counts. Accepting and rejecting apply to one mask and become void once a teacher has predicted another. A corrected
mask stays valid as long as the image is unchanged.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from hepar.cases import Case, parse_enum
from hepar.errors import DataError, StorageError
from hepar.runtime.artifacts import sha256_file, sha256_json


class ReviewDecision(StrEnum):
    ACCEPT = "accept"
    REJECT = "reject"
    CORRECT = "correct"


PAST_TENSE = {
    ReviewDecision.ACCEPT: "accepted",
    ReviewDecision.REJECT: "rejected",
    ReviewDecision.CORRECT: "corrected",
}


@dataclass(frozen=True)
class Review:
    """One decision. `judged_sha256` is the hash of the reviewed pseudo-liver, `mask_sha256` that of the corrected mask.

    The fields are the keys of a line in the log.
    """

    case_id: str
    decision: ReviewDecision
    who: str
    when: str  # UTC, ISO 8601
    image_sha256: str
    judged_sha256: str
    mask_sha256: str = ""

    @property
    def summary(self) -> str:
        """`accepted by NAME, TIME`."""
        return f"{PAST_TENSE[self.decision]} by {self.who}, {self.when}"


@dataclass(frozen=True)
class Reviews:
    """The last decision on each case, and the reviews folder."""

    folder: Path
    by_case: Mapping[str, Review]

    LOG = "decisions.jsonl"
    MASKS = "masks"

    @classmethod
    def load(cls, folder: Path) -> Reviews:
        """Read a reviews folder; an empty one has no decisions yet.

        Raises DataError naming file and line if a line is not a decision, or if the folder is no reviews folder.
        """
        log = folder / cls.LOG
        if not log.is_file():
            if folder.is_dir() and not any(folder.iterdir()):
                return cls(folder, {})
            raise DataError(
                f"{folder} has no reviews: {cls.LOG} is missing; before the first one, let it be an empty folder"
            )
        by_case: dict[str, Review] = {}
        *lines, last = log.read_bytes().split(b"\n")
        if _parse(last):
            lines.append(last)
        for number, line in enumerate(lines, start=1):
            review = _parse(line)
            if review is None:
                raise DataError(f"{log}, line {number}: not a review decision")
            decision = parse_enum(ReviewDecision, review.decision, case_id=review.case_id, column="decision")
            by_case[review.case_id] = replace(review, decision=decision)
        return cls(folder, by_case)

    @classmethod
    def so_far(cls, folder: Path) -> Reviews:
        """The decisions in a folder that may be new: none without a log. Raises DataError if that is damaged."""
        return cls.load(folder) if (folder / cls.LOG).is_file() else cls(folder, {})

    @property
    def hash(self) -> str:
        """Hexadecimal SHA-256 of the decisions that count."""
        return sha256_json([asdict(review) for _, review in sorted(self.by_case.items())])

    def find(self, case: Case, pseudo_sha256: str) -> Review | None:
        """The valid decision on a case whose pseudo-liver now has that hash; None without one or if it is void."""
        review = self.by_case.get(case.case_id)
        if review is None or review.image_sha256 != case.image_sha256:
            return None
        outdated = review.decision != ReviewDecision.CORRECT and review.judged_sha256 != pseudo_sha256
        return None if outdated else review

    def find_void(self, cases: Iterable[Case], pseudo_sha256: Mapping[str, str]) -> list[Review]:
        """Decisions on these cases that no longer apply, because the pseudo-liver or the image has changed."""
        by_id = {case.case_id: case for case in cases}
        return [
            review
            for case_id, review in sorted(self.by_case.items())
            if case_id in by_id and self.find(by_id[case_id], pseudo_sha256.get(case_id, "")) is None
        ]

    def corrected_mask(self, review: Review) -> Path:
        """The path of a corrected mask. Raises DataError if the file is missing or has changed."""
        path = self.folder / self.MASKS / f"{review.mask_sha256}.nii.gz"
        if not path.is_file() or sha256_file(path) != review.mask_sha256:
            raise DataError(f"case {review.case_id}: the corrected mask {path} is missing or has changed")
        return path


NO_REVIEWS = Reviews(Path(), {})


def append_review(folder: Path, review: Review) -> None:
    """Append a decision to the log; it is on disk when this returns. Raises StorageError if the disk is full.

    Safe for concurrent processes. An incomplete last line, which a power cut leaves and which was never confirmed as
    saved, is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / Reviews.LOG
    line = json.dumps({item.name: str(getattr(review, item.name)) for item in fields(Review)}) + "\n"
    descriptor = os.open(log, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        size, data = os.fstat(descriptor).st_size, line.encode()
        last = os.pread(descriptor, size, 0).rpartition(b"\n")[2]
        if _parse(last):  # complete, but an editor removed the line break
            data = b"\n" + data
        elif last:
            size -= len(last)
            os.ftruncate(descriptor, size)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, size)
            raise StorageError(f"{log} cannot be written, so the decision is not saved: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _parse(line: bytes) -> Review | None:
    """The decision in a line of the log, None if it is not one."""
    try:
        return Review(**json.loads(line))
    except (ValueError, TypeError):
        return None


def utc_now() -> str:
    """The time as the log writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
