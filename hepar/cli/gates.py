"""Commands for the quality of pseudo-labels: calibrate the gates, review what they leave uncertain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hepar.cli.options import CALIBRATION, COHORT, PARAMS, PSEUDO, REVIEWS, CohortFolder, ParamsFile

PANEL = "Pseudo-labels and pool"

gates_app = typer.Typer()


@gates_app.command(rich_help_panel=PANEL)
def calibrate_gates(
    cohort: CohortFolder = COHORT,
    calibration: Annotated[Path, typer.Option(help="Folder to write observations, curve and plot to.")] = CALIBRATION,
    out: Annotated[Path | None, typer.Option(help="Also write the calibrated gates, as a params file.")] = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Calibrate the gates by cross-validation: teachers predict manual livers that they have not seen."""
    import hepar.planning.gate_calibration
    from hepar.params import check_new_preset, load_params, write_preset

    if out is not None:
        check_new_preset(out, params)
    gates = hepar.planning.gate_calibration.run(cohort, calibration, load_params(params))
    print(hepar.planning.gate_calibration.summary(calibration))
    if out is not None:
        values = {f"pseudo_label.gates.{name}": value for name, value in gates.items()}
        write_preset(out, params, values, "calibrated by `hepar calibrate-gates`")
        print(f"written to {out}")


@gates_app.command(rich_help_panel=PANEL)
def review(
    pseudo: Annotated[Path, typer.Argument(help="Pseudo-label folder, written by 'hepar pseudo-label'.")] = PSEUDO,
    cohort: CohortFolder = COHORT,
    reviews: Annotated[Path, typer.Option(help="Folder for decisions and corrected masks.")] = REVIEWS,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Local port; 0 picks a free one.")] = 0,
    who: Annotated[str, typer.Option(help="Name of the reviewer.", show_default="the login name")] = "",
) -> None:
    """Accept, reject or correct pseudo-livers in the browser; 'assemble-pool --reviews' applies the decisions."""
    from hepar.pseudo_labels.review_page import serve

    def ready(address: str) -> None:
        print(f"Open {address} in a browser on this machine.")
        print(f"Press Ctrl-C to stop; decisions are saved in {reviews}.", flush=True)

    serve(cohort, pseudo, reviews, port, who, ready)
