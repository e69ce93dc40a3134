"""`spherecf serve`: the photo verbs as a service, with one web page on it."""

from typing import Annotated

import typer

from spherecf.cli.options import BackboneOfModel, ModelFile, open_assessor, open_gallery
from spherecf.common.progress import console

EXAMPLE = "Example: spherecf serve --gallery people"


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen at; 127.0.0.1 is this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8080,
    gallery: Annotated[
        str, typer.Option(help="Gallery to search and enrol in: a folder, or a Milvus server's URI.")
    ] = "",
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    token: Annotated[
        str,
        typer.Option(
            envvar="SPHERECF_TOKEN", show_envvar=True, help="What callers must send (default: a random one)."
        ),
    ] = "",
    no_token: Annotated[bool, typer.Option("--no-token", help="Ask for none; on loopback only.")] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Host name that a reverse proxy passes on; may stand several times."),
    ] = None,
    gallery_token: Annotated[
        str, typer.Option(envvar="SPHERECF_GALLERY_TOKEN", show_envvar=True, help="For a Milvus server.")
    ] = "",
    max_megapixels: Annotated[
        float, typer.Option(min=0.1, max=500, help="Larger photos are refused before they are decoded.")
    ] = 100.0,
    per_minute: Annotated[float, typer.Option(min=1, help="Requests of one client in a minute.")] = 120.0,
) -> None:
    """Serve quality, comparison, templates and a gallery over HTTP, with a web page for people.

    The address with the access token is printed on stderr; open it in a browser. Photos are looked at in
    memory and forgotten; of an enrolled person the gallery keeps the template, not the photos.
    """
    from spherecf.serve import Limits, choose_token, create_app, hosts_of, run

    secret = choose_token(host, token, no_token)
    assessor = open_assessor(model, backbone, max_pixels=round(max_megapixels * 1e6))
    people = open_gallery(gallery, assessor.model, gallery_token) if gallery else None
    try:
        limits = Limits(requests_per_minute=per_minute)
        hosts = hosts_of(host, tuple(allow_host or ()))
        app = create_app(assessor, people, token=secret, hosts=hosts, limits=limits)
        console.print(_welcome(host, port, secret, gallery), highlight=False, markup=False, soft_wrap=True)
        run(app, host, port)
    finally:
        if people is not None:
            people.close()


def _welcome(host: str, port: int, token: str, gallery: str) -> str:
    """Where to point a browser; the part behind # never leaves it."""
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}/" + (f"#token={token}" if token else "")
    people = f"gallery: {gallery}" if gallery else "no gallery (--gallery PATH opens one)"
    return f"SphereCF is at {address}\n{people}; API: http://{shown}:{port}/docs; Ctrl-C ends it"
