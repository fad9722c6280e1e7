"""Commands for a patient's scans: predict them, and compare a scan with an earlier one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hepar.cases import Modality
from hepar.cli.messages import print_message
from hepar.cli.models import PANEL
from hepar.cli.options import UNIVERSAL, Uneven, UnevenSlices, Whole
from hepar.errors import DataError, HeparError, StorageError
from hepar.inference.defaults import FAST_OVERLAP, OVERLAP, VARIANTS
from hepar.inference.settings import Axis, PredictionSettings
from hepar.prediction.outputs import Output

if TYPE_CHECKING:
    from hepar.prediction.predicted_scan import PredictedScan, Predictor
    from hepar.prediction.scans import Scan

OF_MODEL = "the model's own"
WARNED = 1  # exit code with --strict

predict_app = typer.Typer()


@predict_app.command(rich_help_panel=PANEL)
def predict(
    scans: Annotated[
        list[str],
        typer.Argument(
            help="NIfTI, NRRD or MetaImage files; folders or zips of DICOM; s3://BUCKET/KEY;"
            " dicomweb+https://HOST/PATH?StudyInstanceUID=UID.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Folder for a folder of results a scan; or, with an ending such as .nii.gz, one label map of one scan:"
            " 0 background, 1 liver, 2 tumour.",
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="Model folder, exported bundle, or a registered version: models:/NAME@ALIAS or models:/NAME/VERSION."
        ),
    ] = str(UNIVERSAL),
    only: Annotated[
        list[Output] | None,
        typer.Option(help="Write only this; repeatable. seg and sr need DICOM; sr brings seg.", show_default="all"),
    ] = None,
    lesion_segments: Annotated[
        bool, typer.Option(help="One segment a lesion in the DICOM-SEG, instead of one for all tumours.")
    ] = True,
    store: Annotated[
        bool, typer.Option("--store", help="Store DICOM-SEG and SR on the DICOMweb server that a scan comes from.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 1 if any scan has a warning.")] = False,
    uneven_slices: Uneven = UnevenSlices.REFUSE,
    modality: Annotated[
        Modality | None,
        typer.Option(
            case_sensitive=False,
            help="Modality of scans that are not DICOM.",
            show_default="guessed where the values leave no doubt",
        ),
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.9, help="Overlap of neighbouring windows, as a fraction.", show_default=f"{OVERLAP:g}"
        ),
    ] = None,
    variants: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Test-time variants of size and contrast to average, the plain one included.",
            show_default=str(VARIANTS),
        ),
    ] = None,
    mirror: Annotated[
        list[Axis] | None,
        typer.Option(help="Average with the scan mirrored along this axis of the patient; repeatable."),
    ] = None,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help=f"An overlap of {FAST_OVERLAP:g}, no variants, no mirroring. Refused with --overlap, --variants or"
            " --mirror.",
        ),
    ] = False,
    whole: Whole = False,
    tumour_threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Probability that a lesion exceeds somewhere.", show_default=OF_MODEL),
    ] = None,
    min_lesion_ml: Annotated[
        float | None,
        typer.Option(min=0, help="Predicted tumours smaller than this are dropped.", show_default=OF_MODEL),
    ] = None,
) -> None:
    """Segment liver and tumours of scans: masks, measurements, a page, and DICOM objects for DICOM input.

    Prints a line of JSON a scan. Research use only.
    """
    if fast and (overlap is not None or variants is not None or mirror):
        raise DataError("--fast sets --overlap, --variants and --mirror: leave them out")

    from hepar.prediction.opening import open_predictor

    if overlap is None:
        overlap = FAST_OVERLAP if fast else OVERLAP
    settings = PredictionSettings(overlap, variants or VARIANTS, tuple(mirror or ()), tumour_threshold, min_lesion_ml)
    as_label_map = bool(out.suffix) and not out.is_dir()
    if as_label_map:
        _check_label_map(out, scans, bool(only))
    if store:
        _check_storable(scans, only, as_label_map)
    run = _Run(
        open_predictor(model, settings, whole), out, modality, tuple(only or Output), lesion_segments, as_label_map
    )
    run.store = store
    for run.source_number, source in enumerate(scans, start=1):
        run.predict(source, uneven_slices)
    if run.failed:
        raise typer.Exit(2)
    if strict and run.warned:
        print_message(f"{run.warned} of {run.predicted} scans have warnings")
        raise typer.Exit(WARNED)


def _check_label_map(out: Path, scans: list[str], chosen: bool) -> None:
    """Raise DataError unless one scan can be written to one label map."""
    from hepar.imaging.volumes import check_writable

    check_writable(out)
    if len(scans) > 1 or chosen:
        raise DataError(f"{out} is one label map: give a folder for several scans or with --only")
    if out.exists() and Path(scans[0]).exists() and out.samefile(scans[0]):
        raise DataError(f"{out} is the scan itself: choose another file for the labels")


def _check_storable(scans: list[str], only: list[Output] | None, as_label_map: bool) -> None:
    """Raise DataError unless all scans come from DICOMweb and their DICOM objects are written."""
    from hepar.ingest.sources.dicomweb import SCHEMES
    from hepar.runtime.redaction import redact_address

    if elsewhere := [scan for scan in scans if not scan.startswith(SCHEMES)]:
        raise DataError(f"--store is for scans of {' and '.join(SCHEMES)}, not {redact_address(elsewhere[0])}")
    if as_label_map or not {Output.SEG, Output.SR} & set(only or Output):
        raise DataError("--store needs a folder as --out, and seg or sr among what --only chooses")


class _Run:
    """The scans of one command: predicts each and counts what went wrong."""

    def __init__(
        self,
        predictor: Predictor,
        out: Path,
        modality: Modality | None,
        outputs: tuple[Output, ...],
        by_lesion: bool,
        as_label_map: bool,
    ) -> None:
        self.predictor, self.out, self.modality = predictor, out, modality
        self.outputs, self.by_lesion, self.as_label_map = outputs, by_lesion, as_label_map
        self.predicted = self.warned = self.failed = 0
        self.names: list[str] = []
        self.source_number = 1  # of the source at hand, in the order of the command
        self.store = False
        self.server = ""  # that the scans at hand come from, if their results are to be stored there

    def predict(self, source: str, uneven: UnevenSlices) -> None:
        """Predict the scans of a source. One that fails is named, and the others go on."""
        from hepar.ingest.sources.dicomweb import server_of
        from hepar.prediction.scans import open_scans
        from hepar.runtime.redaction import redact_address

        before, failed = self.predicted, self.failed
        self.server = server_of(source) if self.store else ""
        try:
            with open_scans(source, uneven.value) as found:
                if self.as_label_map and len(found.scans) > 1:
                    raise DataError(f"{source} holds {len(found.scans)} scans: give --out a folder")
                for left_out in found.left_out:
                    print_message(f"{redact_address(source)}: {left_out.name} is left out: {left_out.reason}")
                for scan in found.scans:
                    self._predict_one(scan)
        except HeparError as error:
            print_message(str(error))
            self.failed += 1
            return
        if self.predicted == before and self.failed == failed:  # else a sentence has said why
            print_message(f"{redact_address(source)}: no scan was predicted")
            self.failed += 1

    def _predict_one(self, scan: Scan) -> None:
        from hepar.cli.window_bar import window_bar
        from hepar.ingest.sources.dicom_volume import with_option
        from hepar.prediction.folder import NotReplaceable, check_replaceable
        from hepar.prediction.predicted_scan import predict_scan
        from hepar.prediction.scans import unique_names

        scan = scan.qualified() if scan.name in self.names else scan
        self.names = unique_names([*self.names, scan.name])
        scan = replace(scan, name=self.names[-1], source_number=self.source_number)
        try:
            with scan.fetched() as here:
                if not self.as_label_map:
                    check_replaceable(self.out / scan.name, here.hash())  # before the time that a prediction takes
                with window_bar(scan.name) as on_window:
                    predicted = predict_scan(self.predictor, here, self.modality, on_window)
                predicted = self._write(predicted)
        except NotReplaceable as error:
            print_message(str(error))
            self.failed += 1
            return
        except DataError as error:
            print_message(f"{scan.name} is left out: {with_option(error)}" if scan.stack is not None else str(error))
            self.failed += scan.stack is None  # a file that was asked for, not one series of many
            return
        except StorageError as error:
            print_message(f"{scan.name}: {error}" if scan.stack is not None else str(error))
            self.failed += 1
            return
        self.predicted += 1
        self.warned += bool(predicted.warnings)
        for warning in predicted.warnings:
            print_message(f"{scan.name}: warning: {warning.message}")

    def _write(self, predicted: PredictedScan) -> PredictedScan:
        """Write the results of a scan and print its line; returns it with the warnings that came up.

        Raises StorageError if results that are to be stored are not.
        """
        from hepar.evaluation.research_use import RESEARCH_USE
        from hepar.imaging.volumes import to_image, write_image
        from hepar.prediction.folder import PredictionFolder
        from hepar.prediction.predicted_scan import shown
        from hepar.prediction.storing import store_objects
        from hepar.prediction.writing import write_prediction

        if self.as_label_map:
            labels = to_image(predicted.found.labels_zyx, predicted.found.geometry)
            write_image(labels, self.out, RESEARCH_USE)
            printed = {"labels": str(self.out), "modality": str(predicted.modality), **predicted.found.rounded()}
        else:
            folder = self.out / predicted.scan.name
            written = write_prediction(predicted, folder, self.outputs, self.by_lesion)
            predicted, warned = written.scan, [warning.message for warning in written.scan.warnings]
            if written.problem and written.problem not in warned:  # else it is printed as a warning
                print_message(written.problem)
            printed = {"folder": str(folder), **shown(predicted.measurements())}
            if self.server:
                printed["stored"] = store_objects(self.server, PredictionFolder(folder))
            if written.problem in warned and printed.get("stored") == []:
                raise StorageError(f"nothing is stored on {self.server}: {written.problem}")
        print(json.dumps(printed))
        return predicted


@predict_app.command(rich_help_panel=PANEL)
def follow(
    baseline: Annotated[Path, typer.Argument(help="Folder of a predicted scan, or a folder that holds one.")],
    follow_up: Annotated[Path, typer.Argument(help="The same of a later scan of the patient.")],
    nadir_mm: Annotated[
        float | None,
        typer.Option(min=0, help="Smallest sum of diameters so far.", show_default="that of the baseline"),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write everything as JSON.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Also write a row a lesion as CSV.")] = None,
) -> None:
    """Match the lesions of two predicted scans, and suggest a RECIST 1.1 category for the liver. Research use only.

    The livers are aligned first, without deformation. The category is an aid: a reader has to confirm it.
    """
    import hepar.prediction.follow_up
    from hepar.prediction.folder import find_prediction
    from hepar.runtime.artifacts import write_json
    from hepar.runtime.csv_cells import frame_to_csv
    from hepar.runtime.whole_files import write_text

    found = hepar.prediction.follow_up.follow(find_prediction(baseline), find_prediction(follow_up), nadir_mm)
    for warning in found.warnings:
        print_message(f"warning: {warning}")
    if json_file is not None:
        write_json(json_file, found.as_json())
    if csv_file is not None:
        write_text(csv_file, frame_to_csv(found.table()))
    print(json.dumps(found.as_json()))
