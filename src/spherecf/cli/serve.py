"""`spherecf serve`: the photo commands as an HTTP service with a web page."""

from typing import Annotated

import typer

from spherecf.cli.options import BackboneOfModel, GalleryToken, ModelFile, open_assessor, open_gallery
from spherecf.cli.output import print_text

EXAMPLE = "Example: spherecf serve --gallery people"


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 127.0.0.1 accepts this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8080,
    gallery: Annotated[
        str, typer.Option(help="Gallery to search and enrol in: a file, or the URI of a Milvus server.")
    ] = "",
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    token: Annotated[
        str,
        typer.Option(
            envvar="SPHERECF_TOKEN",
            show_envvar=True,
            help="Access token of the service (default: a random one).",
        ),
    ] = "",
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Require no token; loopback addresses only.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Additional host name to accept, e.g. of a reverse proxy; may be repeated."),
    ] = None,
    trust_proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or network of a reverse proxy whose X-Forwarded-For is believed; may be repeated."
        ),
    ] = None,
    gallery_token: GalleryToken = "",
    max_megapixels: Annotated[
        float, typer.Option(min=0.1, max=500, help="Reject larger photos before they are decoded.")
    ] = 100.0,
    per_minute: Annotated[float, typer.Option(min=1, help="Requests allowed per client and minute.")] = 120.0,
) -> None:
    """Serve quality, comparison, templates and a gallery over HTTP, with a web page.

    The address with the access token is printed on stderr; open it in a browser. Photos are processed in
    memory and not stored; the gallery keeps the template of an enrolled person, not the photos.
    """
    from spherecf.serve import Limits, choose_token, create_app, hosts_of, run

    secret = choose_token(host, token, no_token)
    assessor = open_assessor(model, backbone, max_pixels=round(max_megapixels * 1e6))
    people = open_gallery(gallery, assessor.model, gallery_token) if gallery else None
    try:
        limits = Limits(requests_per_minute=per_minute)
        hosts = hosts_of(host, tuple(allow_host or ()))
        app = create_app(assessor, people, token=secret, hosts=hosts, limits=limits)
        print_text(_welcome(host, port, secret, gallery))
        run(app, host, port, trusted_proxies=tuple(trust_proxy or ()))
    finally:
        if people is not None:
            people.close()


def _welcome(host: str, port: int, token: str, gallery: str) -> str:
    """The addresses to open; a browser does not send the part after #."""
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}/" + (f"#token={token}" if token else "")
    people = f"gallery: {gallery}" if gallery else "no gallery (open one with --gallery PATH)"
    return f"SphereCF is running at {address}\n{people}; API: http://{shown}:{port}/docs; stop with Ctrl-C"
