"""Options shared by several commands, and the functions that open what they name."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spherecf.cli.output import print_text

if TYPE_CHECKING:
    from spherecf.gallery import Gallery
    from spherecf.models import ConfidenceModel, FrozenBackbone
    from spherecf.photos import FaceAssessor


BackboneFile = Annotated[
    Path | None,
    typer.Option(help="Recogniser: ONNX file or torch checkpoint (default: the bundled SFace)."),
]
PresetName = Annotated[
    str,
    typer.Option(help="Preprocessing of an unknown recogniser: insightface, scf, adaface, magface or raw."),
]
DtypeName = Annotated[
    str,
    typer.Option(
        help="float32, or less accurate, with the torch engines: bfloat16 (twice as fast), tf32 (on a GPU)."
    ),
]
EngineName = Annotated[
    str, typer.Option(help="Engine that runs the recogniser: auto, onnxruntime, torch or compiled.")
]
DeviceName = Annotated[str, typer.Option(help="Device of the torch engines: cpu, cuda, cuda:1.")]
BatchSize = Annotated[int, typer.Option(help="Images per call of the recogniser.")]
ListRoot = Annotated[
    Path | None, typer.Option(help="Base folder of the paths in a list file (default: the file's folder).")
]
IjbSet = Annotated[str, typer.Option("--set", help="Name prefix of the meta files: ijbb or ijbc.")]
Draws = Annotated[int, typer.Option(help="Bootstrap draws over people; 0 for no intervals.")]
PhotoPaths = Annotated[list[Path], typer.Argument(help="Photos and folders of photos, searched recursively.")]
GalleryToken = Annotated[
    str,
    typer.Option(envvar="SPHERECF_GALLERY_TOKEN", show_envvar=True, help="Access token of a Milvus server."),
]


def open_backbone(
    path: Path | None,
    preprocessing: str,
    engine: str = "auto",
    device: str = "cpu",
    dtype: str = "float32",
) -> "FrozenBackbone":
    """Load the recogniser; repairs of its file are reported on stderr."""
    from spherecf.models import CHECKPOINT_SUFFIXES, FrozenBackbone

    options: dict[str, Any] = {"engine": engine, "device": device, "dtype": dtype}
    if path is None:
        backbone = FrozenBackbone.default(**options)
    elif path.suffix in CHECKPOINT_SUFFIXES:
        backbone = FrozenBackbone.from_checkpoint(path, preprocessing or None, **options)
        print_text(f"{path.name}: {backbone.name}, {backbone.preprocessing}")
    else:
        backbone = FrozenBackbone.from_onnx(path, preprocessing=preprocessing or None, **options)
    print_repairs(backbone)
    return backbone


def print_repairs(backbone: "FrozenBackbone") -> None:
    """Report repairs of the recogniser's file and doubts about its preprocessing on stderr."""
    for repair in backbone.repairs:
        print_text(f"{backbone.name}: {repair}")


ModelFile = Annotated[
    Path | None, typer.Option(help="Confidence model (default: the one that ships with SphereCF).")
]
BackboneOfModel = Annotated[
    Path | None, typer.Option(help="Recogniser of the model: ONNX file or checkpoint (default: SFace).")
]
DetectorFile = Annotated[Path | None, typer.Option(help="Face detector: a YuNet ONNX file.")]


def open_assessor(
    model: Path | None,
    backbone: Path | None,
    detector: Path | None = None,
    *,
    faces: Literal["main", "all"] = "all",
    engine: str = "auto",
    device: str = "cpu",
    max_pixels: int | None = None,
) -> "FaceAssessor":
    """Load model, recogniser and detector as one `FaceAssessor`."""
    from spherecf.faces import MAX_PIXELS, FaceDetector
    from spherecf.models import load
    from spherecf.photos import FaceAssessor

    loaded = load(model, backbone, engine=engine, device=device)
    if backbone is not None:
        print_repairs(loaded.backbone)
    return FaceAssessor(
        loaded,
        None if detector is None else FaceDetector(detector),
        faces=faces,
        max_pixels=MAX_PIXELS if max_pixels is None else max_pixels,
    )


def open_gallery(uri: str, model: "ConfidenceModel", token: str = "", *, create: bool = True) -> "Gallery":
    """Open the gallery of this model: a folder, or the URI of a Milvus server."""
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
