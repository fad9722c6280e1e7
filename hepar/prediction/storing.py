"""Storing the DICOM objects of a prediction on a DICOMweb server, by STOW-RS."""

from __future__ import annotations

import pydicom

from hepar.errors import StorageError
from hepar.ingest.sources.dicomweb import client, dicomweb_errors
from hepar.prediction.folder import PredictionFolder


def store_objects(server: str, prediction: PredictionFolder) -> list[str]:
    """Store DICOM-SEG and SR of a prediction, those that there are; returns the names of the files.

    The SEG comes first, since the SR refers to it. Raises StorageError if the server refuses one.
    """
    names = [name for name in (prediction.SEG, prediction.SR) if (prediction.folder / name).is_file()]
    for name in names:
        with dicomweb_errors(server):
            answer = client(server).store_instances([pydicom.dcmread(prediction.folder / name)])
        if failed := answer.get("FailedSOPSequence"):
            raise StorageError(f"{server} refuses {name} with the reason {failed[0].get('FailureReason', 'unknown')}")
    return names
