"""Options that every photo command has, and what they open."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spherecf.cli._backbone import print_repairs

if TYPE_CHECKING:
    from spherecf.gallery import Gallery
    from spherecf.models import ConfidenceModel
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
    max_pixels: int | None = None,
) -> "FaceAssessor":
    """Model, recogniser and detector behind one call."""
    from spherecf.faces import MAX_PIXELS, FaceDetector
    from spherecf.models import load
    from spherecf.photos import FaceAssessor

    loaded = load(model, backbone, engine=engine)
    if backbone is not None:
        print_repairs(loaded.backbone)
    return FaceAssessor(
        loaded,
        None if detector is None else FaceDetector(detector),
        faces=faces,
        max_pixels=MAX_PIXELS if max_pixels is None else max_pixels,
    )


def open_gallery(uri: str, model: "ConfidenceModel", token: str = "", *, create: bool = True) -> "Gallery":
    """The gallery of this model: a folder, or a Milvus server by its URI."""
    from spherecf.gallery import Gallery

    return Gallery.open(
        uri,
        model=model.fingerprint(),
        backbone=model.backbone.sha256,
        dim=model.backbone.dim,
        radius=model.radius,
        calibration=model.calibration,
        create=create,
        token=token,
    )
