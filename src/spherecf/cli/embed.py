"""`spherecf embed`: images in, directions and confidences out."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spherecf.cli.options import DtypeName, EngineName, print_repairs
from spherecf.cli.output import file_to_write
from spherecf.common.progress import console
from spherecf.errors import InputError

if TYPE_CHECKING:
    from spherecf.data import ImageSource, View

EXAMPLE = "Example: spherecf embed model.safetensors faces/ faces.safetensors --flip"
_LISTED = 20  # skipped images shown on stderr; the JSON lists all


def embed(
    model: Annotated[Path, typer.Argument(help="Model written by `spherecf train confidence`.")],
    source: Annotated[Path, typer.Argument(help="Images in any layout that `data inspect` knows.")],
    out: Annotated[
        Path, typer.Argument(help="Embeddings file to write, e.g. faces.safetensors.", callback=file_to_write)
    ],
    backbone: Annotated[
        Path | None, typer.Option(help="The recogniser's ONNX file (default: SFace from its wheel).")
    ] = None,
    degrade: Annotated[
        str, typer.Option(help="Degrade every image by this recipe: train, cross or unseen.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Which draw of the degradations.")] = 0,
    flip: Annotated[
        bool, typer.Option("--flip", help="Test-time flip: add the mirrored image's embedding.")
    ] = False,
    align: Annotated[
        bool, typer.Option("--align", help="The images are photos: find the main face and align it.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Images per call of the recogniser.")] = 32,
    engine: EngineName = "auto",
    dtype: DtypeName = "float32",
    device: Annotated[str, typer.Option(help="Where torch runs the recogniser: cpu, cuda, cuda:1.")] = "cpu",
    root: Annotated[
        Path | None, typer.Option(help="Where the paths of a list file start (default: its folder).")
    ] = None,
    meta: Annotated[
        Path | None, typer.Option(help="SOURCE holds IJB's loose crops, and this its meta files.")
    ] = None,
    set_: Annotated[str, typer.Option("--set", help="With --meta: ijbb or ijbc.")] = "ijbc",
) -> None:
    """Embed every image as a direction mu and a confidence log kappa.

    Images that cannot be used are left out, counted and listed. Interrupted, the same command goes on where
    it stopped. The report, as JSON on stdout: what was written, how fast, and every skipped image with the
    reason.
    """
    from spherecf.data import open_source
    from spherecf.extract import embed as embed_images
    from spherecf.models import load

    if seed and not degrade:
        raise InputError("--seed chooses the draw of --degrade RECIPE, which is missing")
    if meta is not None and (align or root):
        raise InputError("--meta aligns by the landmarks of the meta files; leave out --align and --root")
    view = _view(degrade, seed)
    loaded = load(model, backbone, engine=engine, dtype=dtype, device=device)
    size = loaded.backbone.preprocessing.size
    opened = _ijb(source, meta, set_, size) if meta else open_source(source, root)
    print_repairs(loaded.backbone)
    photos = _aligned(opened, size) if align else opened
    result = embed_images(loaded, photos, out, view=view, flip=flip, batch_size=batch_size)
    seconds = result.provenance["seconds"]  # of all runs that it took; this one may have been the last bit
    report = {
        "written": str(out),
        "images": len(result),
        "dim": result.dim,
        "fingerprint": result.fingerprint(),
        "seconds": seconds,
        "images_per_second": round(len(opened) / max(seconds, 0.1), 1),
        "view": result.provenance["view"],
        "flip": result.provenance["flip"],
        "alignment": result.provenance["alignment"],
        "skipped": [{"key": key, "reason": reason} for key, reason in result.skipped],
    }
    typer.echo(json.dumps(report, indent=2))
    console.print(f"{len(result)} of {len(opened)} images embedded: {out}", highlight=False, markup=False)
    _list_skipped(result.skipped)


def _view(recipe: str, seed: int) -> "View | None":
    from spherecf.data import Degradation, View

    return View(Degradation(recipe, seed)) if recipe else None


def _ijb(folder: Path, meta: Path, name: str, size: tuple[int, int]) -> "ImageSource":
    from spherecf.data import read_ijb
    from spherecf.faces import IjbFaces

    if size[0] != size[1]:
        raise InputError(f"--meta makes square crops, this recogniser takes {size[0]}x{size[1]}")
    return IjbFaces(folder, read_ijb(meta, name), size=size[0])


def _aligned(source: "ImageSource", size: tuple[int, int]) -> "ImageSource":
    from spherecf.faces import AlignedFaces

    if size[0] != size[1]:
        raise InputError(f"--align makes square crops, this recogniser takes {size[0]}x{size[1]}")
    return AlignedFaces(source, size=size[0])


def _list_skipped(skipped: list[tuple[str, str]]) -> None:
    if skipped:
        console.print(f"[yellow]{len(skipped)} images could not be used:[/]")
    for key, reason in skipped[:_LISTED]:
        console.print(f"  {key}: {reason}", highlight=False, markup=False, soft_wrap=True)
    if len(skipped) > _LISTED:
        console.print(f"  ... and {len(skipped) - _LISTED} more (all of them are in the JSON)")
