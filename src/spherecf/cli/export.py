"""`spherecf export`: the model for programs that know neither torch nor SphereCF."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spherecf.cli.options import BackboneFile
from spherecf.cli.output import file_to_write
from spherecf.common.progress import console

if TYPE_CHECKING:
    from spherecf.export import ExportReport

app = typer.Typer(help="Take the model elsewhere.", no_args_is_help=True)


@app.command("onnx", epilog="Example: spherecf export onnx sface.onnx")
def onnx_(
    out: Annotated[Path, typer.Argument(help="ONNX file to write.", callback=file_to_write)],
    model: Annotated[
        Path | None, typer.Option(help="Confidence model (default: the one that ships with SphereCF).")
    ] = None,
    backbone: BackboneFile = None,
    preprocessing: Annotated[
        Literal["inside", "outside"],
        typer.Option(help="inside: uint8 RGB faces go in; outside: the network's float32 NCHW."),
    ] = "inside",
    outputs: Annotated[
        Literal["all", "embedding"],
        typer.Option(help="all, or embedding for programs that insist on one output."),
    ] = "all",
) -> None:
    """Write recogniser, head and percentiles as one ONNX file, any number of faces at once.

    Before it is written, onnxruntime's answers are compared with the model's; a file that says something else
    is refused. The report, as JSON on stdout: inputs, outputs and the largest differences.
    """
    from spherecf.errors import InputError
    from spherecf.export import export_onnx
    from spherecf.models import load

    for read in (model, backbone):
        if read is not None and out.exists() and out.samefile(read):
            raise InputError(f"{out}: is what would be read; choose another name for the file to write")
    loaded = load(model, backbone)
    report = export_onnx(loaded, out, preprocessing=preprocessing, outputs=outputs)
    typer.echo(json.dumps(report.to_dict(), indent=2))
    _tell(report)


def _tell(report: "ExportReport") -> None:
    parity = report.parity
    lines = [
        f"{report.path}: {report.bytes / 1e6:.1f} MB, opset {report.opset}",
        *(f"  in  {name}: {shape}" for name, shape in report.inputs.items()),
        *(f"  out {name}: {shape}" for name, shape in report.outputs.items()),
        f"  largest differences from the model: mu {parity.mu:.1e}, log kappa {parity.log_kappa:.1e}, "
        f"percentile {parity.percentile:.1e}",
        *(f"  without {name}: {reason}" for name, reason in report.missing.items()),
    ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
