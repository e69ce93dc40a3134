"""`spherecf serve` and `export`: serve the model over HTTP, and export it to other runtimes."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spherecf.cli.options import (
    BackboneOfModel,
    GalleryToken,
    ModelFile,
    file_to_write,
    open_assessor,
    open_gallery,
    print_text,
)

if TYPE_CHECKING:
    from spherecf.export import ExportReport

SERVE_EXAMPLE = "Example: spherecf serve --gallery people"


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on. 127.0.0.1 accepts connections from this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8080,
    gallery: Annotated[
        str,
        typer.Option(help="Gallery to search and to enrol in: a file, or the URI of a Milvus server."),
    ] = "",
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    token: Annotated[
        str,
        typer.Option(
            envvar="SPHERECF_TOKEN",
            show_envvar=True,
            help="Access token that clients must send (default: a random token).",
        ),
    ] = "",
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Require no token. Allowed on loopback addresses only.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Additional host name to accept, e.g. of a reverse proxy. May be repeated."),
    ] = None,
    trust_proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or network of a reverse proxy whose X-Forwarded-For header is trusted. May be "
            "repeated."
        ),
    ] = None,
    gallery_token: GalleryToken = "",
    max_megapixels: Annotated[
        float, typer.Option(min=0.1, max=500, help="Reject photos larger than this, in megapixels.")
    ] = 100.0,
    per_minute: Annotated[float, typer.Option(min=1, help="Maximum requests per client and minute.")] = 120.0,
) -> None:
    """Serve quality assessment, comparison, templates and a gallery over HTTP, with a web page.

    Prints the address with the access token on stderr; open it in a browser. Photos are processed in memory
    and never stored. The gallery stores templates of enrolled people, not their photos.
    """
    from spherecf.serve import Limits, choose_token, create_app, hosts_of, run

    secret = choose_token(host, token, no_token)
    assessor = open_assessor(model, backbone, max_pixels=round(max_megapixels * 1e6))
    people = open_gallery(gallery, assessor.model, gallery_token) if gallery else None
    try:
        limits = Limits(requests_per_minute=per_minute)
        hosts = hosts_of(host, tuple(allow_host or ()))
        app = create_app(assessor, people, token=secret, hosts=hosts, limits=limits)
        print_text(_welcome(host, port, secret, gallery, given=bool(token)))
        run(app, host, port, trusted_proxies=tuple(trust_proxy or ()))
    finally:
        if people is not None:
            people.close()


def _welcome(host: str, port: int, token: str, gallery: str, *, given: bool) -> str:
    """Start-up message with the addresses to open. Browsers do not send the fragment after #.

    A token that the user has given is not printed: in a container, stderr is a log that is kept.
    """
    opened = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # not every browser opens the former
    url_host = f"[{opened}]" if ":" in opened else opened
    address = f"http://{url_host}:{port}/"
    if token:
        address += " (the page asks for your token)" if given else f"#token={token}"
    people = f"gallery: {gallery}" if gallery else "no gallery (open one with --gallery PATH)"
    return f"SphereCF is running at {address}\n{people}; API: http://{url_host}:{port}/docs; stop with Ctrl-C"


export_app = typer.Typer(help="Export the model to other runtimes.", no_args_is_help=True)


@export_app.command("onnx", epilog="Example: spherecf export onnx sface.onnx")
def onnx_(
    out: Annotated[Path, typer.Argument(help="ONNX file to write.", callback=file_to_write)],
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    preprocessing: Annotated[
        Literal["inside", "outside"],
        typer.Option(
            help="Where preprocessing takes place. inside: the graph takes uint8 RGB faces. outside: it "
            "takes the network's float32 NCHW tensor."
        ),
    ] = "inside",
    outputs: Annotated[
        Literal["all", "embedding"],
        typer.Option(help="Outputs of the graph. Use embedding for programs that accept only one output."),
    ] = "all",
) -> None:
    """Export recogniser, confidence head and percentiles as one ONNX file with a dynamic batch size.

    Before the file is written, its outputs in onnxruntime are compared with those of the model; the command
    fails if they differ. Prints a JSON report on stdout: inputs, outputs and the largest differences.
    """
    from spherecf.errors import InputError
    from spherecf.export import export_onnx
    from spherecf.models import load

    for input_file in (model, backbone):
        if input_file is not None and out.exists() and out.samefile(input_file):
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
