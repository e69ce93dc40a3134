"""The options that name a recogniser, the same for every verb that trains."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spherecf._progress import console

if TYPE_CHECKING:
    from spherecf.models import FrozenBackbone

BackboneFile = Annotated[Path | None, typer.Option(help="ONNX recogniser (default: SFace from its wheel).")]
PresetName = Annotated[
    str, typer.Option(help="Of an unknown recogniser: insightface, scf, adaface, magface or raw.")
]
EngineName = Annotated[str, typer.Option(help="auto, onnxruntime, torch or compiled.")]


def open_backbone(path: Path | None, preprocessing: str, engine: str = "auto") -> "FrozenBackbone":
    """The recogniser; what had to be repaired in its file is said on stderr."""
    from spherecf.models import FrozenBackbone

    if path is None:
        found = FrozenBackbone.default(engine=engine)
    else:
        found = FrozenBackbone.from_onnx(path, preprocessing=preprocessing or None, engine=engine)
    for repair in found.repairs:
        console.print(f"{found.name}: {repair}", highlight=False, markup=False)
    return found
