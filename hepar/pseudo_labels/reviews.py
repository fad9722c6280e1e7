"""What people decided about pseudo-livers: a list that only grows, and the masks that they corrected.

A reviews folder holds `decisions.jsonl`, one decision a line, and `masks/<sha256>.nii.gz`. Of a case the last decision
counts. Accepting and rejecting is about one mask: when a teacher has drawn another one since, the decision is void. A
corrected mask stays valid as long as the image is the same.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from hepar.cases import Case, parse_enum
from hepar.errors import DataError, StorageError
from hepar.runtime.artifacts import sha256_file, sha256_json

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
        *lines, last = log.read_bytes().split(b"\n")
        if _read(last):
            lines.append(last)
        for number, line in enumerate(lines, start=1):
            review = _read(line)
            if review is None:
                raise DataError(f"{log}, line {number}: it is no decision")
            decision = parse_enum(Decision, review.decision, case_id=review.case_id, column="decision")
            found[review.case_id] = replace(review, decision=decision)
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
    """Add a decision to the list; it is on the disk when this returns. Raises StorageError where it does not fit.

    Several processes may add to one list. What a power cut left of a line, which nobody was told is saved, is dropped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps({item.name: str(getattr(review, item.name)) for item in fields(Review)}) + "\n"
    descriptor = os.open(folder / LOG, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        before, data = os.fstat(descriptor).st_size, line.encode()
        last = os.pread(descriptor, before, 0).rpartition(b"\n")[2]
        if _read(last):  # an editor left it without its end
            data = b"\n" + data
        elif last:
            before -= len(last)
            os.ftruncate(descriptor, before)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, before)
            raise StorageError(f"{folder / LOG}: {error.strerror}, the decision is not saved") from None
    finally:
        os.close(descriptor)


def _read(line: bytes) -> Review | None:
    """The decision of a line, None where it holds none."""
    try:
        return Review(**json.loads(line))
    except (ValueError, TypeError):
        return None


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
