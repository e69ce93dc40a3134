"""Options that every photo command has, and what they open."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from spherecf.photos import FaceAssessor

ModelFile = Annotated[
    Path | None, typer.Option(help="A confidence model (default: the one that ships with SphereCF).")
]
BackboneOfModel = Annotated[
    Path | None, typer.Option(help="The model's recogniser, ONNX or checkpoint (default: SFace).")
]
DetectorFile = Annotated[Path | None, typer.Option(help="Another YuNet ONNX file to find faces with.")]


def open_assessor(
    model: Path | None,
    backbone: Path | None,
    detector: Path | None = None,
    *,
    faces: Literal["main", "all"] = "all",
    engine: str = "auto",
) -> "FaceAssessor":
    """Model, recogniser and detector behind one call."""
    from spherecf.faces import FaceDetector
    from spherecf.models import load
    from spherecf.photos import FaceAssessor

    loaded = load(model, backbone, engine=engine)
    return FaceAssessor(loaded, None if detector is None else FaceDetector(detector), faces=faces)
