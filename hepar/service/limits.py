"""What the service takes from its users, and for how long it keeps it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServiceLimits:
    """Bounds on uploads and jobs. Whatever exceeds one is refused with a sentence."""

    upload_bytes: int = 2 * 2**30
    unpacked_bytes: int = 8 * 2**30  # of all files of a zip, or of the voxels of a scan
    files: int = 5000  # in a zip
    voxels: int = 2**29  # of a scan: 1000 slices of 724²
    waiting: int = 16  # jobs that are uploaded, wait or run
    kept: int = 200  # jobs in all; the results of the oldest make room for a new one
    upload_seconds: float = 600.0
    check_seconds: float = 120.0
    prediction_seconds: float = 1800.0  # of one job
    kept_seconds: float = 3600.0  # results, from the end of the job
    free_bytes: int = 2**30  # that uploads leave on the disk
