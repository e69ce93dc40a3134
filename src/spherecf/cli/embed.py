"""`spherecf embed`: write directions and confidences of images to an embeddings file."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spherecf.cli.options import (
    BackboneOfModel,
    BatchSize,
    DeviceName,
    DtypeName,
    EngineName,
    IjbSet,
    ListRoot,
    file_to_write,
    print_listing,
    print_repairs,
    print_text,
)
from spherecf.errors import InputError

if TYPE_CHECKING:
    from spherecf.data import ImageSource, View

EXAMPLE = "Example: spherecf embed model.safetensors faces/ faces.safetensors --flip"


def embed(
    model: Annotated[Path, typer.Argument(help="Confidence model, e.g. from `spherecf train confidence`.")],
    source: Annotated[Path, typer.Argument(help="Images in any layout that `spherecf data inspect` reads.")],
    out: Annotated[
        Path, typer.Argument(help="Embeddings file to write, e.g. faces.safetensors.", callback=file_to_write)
    ],
    backbone: BackboneOfModel = None,
    degrade: Annotated[
        str, typer.Option(help="Degrade every image with a recipe: train, wide, cross, unseen or beyond.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Random seed of the degradations; needs --degrade.")] = 0,
    flip: Annotated[
        bool, typer.Option("--flip", help="Add the embedding of the mirrored image (test-time flip).")
    ] = False,
    align: Annotated[
        bool,
        typer.Option("--align", help="Detect and align the main face first. Use it for whole photos."),
    ] = False,
    batch_size: BatchSize = 32,
    engine: EngineName = "auto",
    dtype: DtypeName = "float32",
    device: DeviceName = "cpu",
    root: ListRoot = None,
    meta: Annotated[
        Path | None,
        typer.Option(help="Folder of IJB's meta files. Use it if SOURCE contains IJB's loose crops."),
    ] = None,
    set_: IjbSet = "ijbc",
) -> None:
    """Embed every image as a direction mu and a confidence log kappa.

    Unusable images are skipped and listed. After an interruption, run the same command again to continue.
    Prints a JSON report on stdout: the file written, the speed, and every skipped image with the reason.
    """
    from spherecf.data import open_source
    from spherecf.extract import embed as embed_images
    from spherecf.models import load

    if seed and not degrade:
        raise InputError("--seed has no effect without --degrade RECIPE")
    if meta is not None and (align or root):
        raise InputError("--meta aligns by the landmarks in the meta files; leave out --align and --root")
    view = _view(degrade, seed)
    loaded = load(model, backbone, engine=engine, dtype=dtype, device=device)
    size = loaded.backbone.preprocessing.size
    opened = _ijb(source, meta, set_, size) if meta else open_source(source, root)
    print_repairs(loaded.backbone)
    photos = _aligned(opened, size) if align else opened
    result = embed_images(loaded, photos, out, view=view, flip=flip, batch_size=batch_size)
    seconds = result.provenance["seconds"]  # of all runs, including interrupted ones
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
    print_text(f"{len(result)} of {len(opened)} images embedded: {out}")
    if result.skipped:
        print_text(f"{len(result.skipped)} images were skipped:", "yellow")
        print_listing([f"{key}: {reason}" for key, reason in result.skipped])


def _view(recipe: str, seed: int) -> "View | None":
    from spherecf.data import Degradation, View

    return View(Degradation(recipe, seed)) if recipe else None


def _ijb(folder: Path, meta: Path, name: str, size: tuple[int, int]) -> "ImageSource":
    from spherecf.data import read_ijb
    from spherecf.faces import IjbFaces

    if size[0] != size[1]:
        raise InputError(f"--meta makes square crops, but this recogniser takes {size[0]}x{size[1]}")
    return IjbFaces(folder, read_ijb(meta, name), size=size[0])


def _aligned(source: "ImageSource", size: tuple[int, int]) -> "ImageSource":
    from spherecf.faces import AlignedFaces

    if size[0] != size[1]:
        raise InputError(f"--align makes square crops, but this recogniser takes {size[0]}x{size[1]}")
    return AlignedFaces(source, size=size[0])
