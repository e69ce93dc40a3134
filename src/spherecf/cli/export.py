"""`spherecf export`: write the model for runtimes without torch and SphereCF."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spherecf.cli.options import BackboneOfModel, ModelFile
from spherecf.cli.output import file_to_write, print_text

if TYPE_CHECKING:
    from spherecf.export import ExportReport

app = typer.Typer(help="Export the model to other runtimes.", no_args_is_help=True)


@app.command("onnx", epilog="Example: spherecf export onnx sface.onnx")
def onnx_(
    out: Annotated[Path, typer.Argument(help="ONNX file to write.", callback=file_to_write)],
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    preprocessing: Annotated[
        Literal["inside", "outside"],
        typer.Option(
            help="inside: the input is uint8 RGB faces; outside: the network's float32 NCHW tensor."
        ),
    ] = "inside",
    outputs: Annotated[
        Literal["all", "embedding"],
        typer.Option(help="all, or embedding for programs that accept one output only."),
    ] = "all",
) -> None:
    """Write recogniser, confidence head and percentiles as one ONNX file with a dynamic batch size.

    The outputs under onnxruntime are compared with the model's before the file is written; if they differ,
    the command fails. Prints a JSON report on stdout: inputs, outputs and the largest differences.
    """
    from spherecf.errors import InputError
    from spherecf.export import export_onnx
    from spherecf.models import load

    for read in (model, backbone):
        if read is not None and out.exists() and out.samefile(read):
            raise InputError(f"{out}: is an input of this command; choose another output file")
    loaded = load(model, backbone)
    report = export_onnx(loaded, out, preprocessing=preprocessing, outputs=outputs)
    typer.echo(json.dumps(report.to_dict(), indent=2))
    _print_summary(report)


def _print_summary(report: "ExportReport") -> None:
    parity = report.parity
    lines = [
        f"{report.path}: {report.bytes / 1e6:.1f} MB, opset {report.opset}",
        *(f"  in  {name}: {shape}" for name, shape in report.inputs.items()),
        *(f"  out {name}: {shape}" for name, shape in report.outputs.items()),
        f"  largest differences from the model: mu {parity.mu:.1e}, log kappa {parity.log_kappa:.1e}, "
        f"percentile {parity.percentile:.1e}",
        *(f"  without {name}: {reason}" for name, reason in report.missing.items()),
    ]
    print_text("\n".join(lines))
