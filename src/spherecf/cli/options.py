"""Shared by all commands: options, loading of models and galleries, output, and exit codes."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from spherecf.common.files import check_destination, check_folder
from spherecf.common.progress import console, print_text as print_text
from spherecf.errors import InputError, SpherecfError, StorageError

if TYPE_CHECKING:
    from spherecf.gallery import Gallery
    from spherecf.models import ConfidenceModel, FrozenBackbone
    from spherecf.photos import FaceAssessor, PhotoFiles

BackboneFile = Annotated[
    Path | None,
    typer.Option(help="Recogniser: an ONNX file or a PyTorch checkpoint (default: the bundled SFace)."),
]
PresetName = Annotated[
    str,
    typer.Option(
        help="Preprocessing for a recogniser that SphereCF does not know: insightface, scf, adaface, magface "
        "or raw."
    ),
]
DtypeName = Annotated[
    str,
    typer.Option(
        help="Precision: float32, bfloat16 (about twice as fast, less accurate) or tf32 (GPU only, less "
        "accurate). bfloat16 and tf32 need a torch engine."
    ),
]
EngineName = Annotated[
    str, typer.Option(help="Engine that runs the recogniser: auto, onnxruntime, torch or compiled.")
]
DeviceName = Annotated[str, typer.Option(help="Device for the torch engines: cpu, cuda or cuda:N.")]
BatchSize = Annotated[int, typer.Option(help="Batch size of the recogniser, in images.")]
ListRoot = Annotated[
    Path | None, typer.Option(help="Base folder of the paths in a list file (default: the list's folder).")
]
IjbSet = Annotated[str, typer.Option("--set", help="Name prefix of the meta files: ijbb or ijbc.")]
Draws = Annotated[
    int, typer.Option(help="Number of bootstrap samples over people. 0 turns off confidence intervals.")
]
PhotoPaths = Annotated[list[Path], typer.Argument(help="Photos, and folders to search for photos.")]
GalleryToken = Annotated[
    str,
    typer.Option(
        envvar="SPHERECF_GALLERY_TOKEN", show_envvar=True, help="Access token for the Milvus server."
    ),
]


def open_backbone(
    path: Path | None,
    preprocessing: str,
    engine: str = "auto",
    device: str = "cpu",
    dtype: str = "float32",
) -> "FrozenBackbone":
    """Load the recogniser, and report repairs of its file on stderr."""
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
    Path | None, typer.Option(help="Confidence model (default: the one bundled with SphereCF).")
]
BackboneOfModel = Annotated[
    Path | None,
    typer.Option(help="Recogniser of the model: an ONNX file or a PyTorch checkpoint (default: SFace)."),
]
DetectorFile = Annotated[
    Path | None, typer.Option(help="Face detector: a YuNet ONNX file (default: the bundled YuNet).")
]


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
    """Open a gallery for this model, from a file or the URI of a Milvus server."""
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


AsLines = Annotated[
    bool,
    typer.Option(
        "--json", help="Print JSON lines on stdout. This is the default if stdout is not a terminal."
    ),
]

AsReport = Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")]


def print_lines(rows: Iterable[Mapping[str, Any]], as_lines: bool = True) -> None:
    """Print one JSON object per line on stdout, if requested or if stdout is not a terminal.

    Raises:
        ValueError: a row contains NaN or an infinity.
    """
    if lines_wanted(as_lines):
        for row in rows:
            typer.echo(json.dumps(row, ensure_ascii=False, allow_nan=False))


def lines_wanted(as_lines: bool) -> bool:
    """True if JSON lines were requested, or if stdout is not a terminal."""
    return as_lines or not sys.stdout.isatty()


def print_listing(lines: Sequence[str], limit: int = 20, *, in_json: bool = True) -> None:
    """Print the first ``limit`` lines on stderr, indented; ``in_json``: the JSON output has all of them."""
    for line in lines[:limit]:
        print_text(f"  {line}")
    if len(lines) > limit:
        where = " (the JSON output lists all of them)" if in_json else ""
        print_text(f"  ... and {len(lines) - limit:,} more{where}")


def photos_in(paths: Sequence[Path]) -> "PhotoFiles":
    """The photos among files and in folders.

    Raises:
        InputError: there is none.
    """
    from spherecf.photos import find_photos

    files = find_photos(paths)
    if not files.photos:
        print_left_out(files)
        raise InputError(f"found no photos in {', '.join(map(str, paths))}")
    return files


def print_left_out(*found: "PhotoFiles") -> None:
    """Count and list on stderr the folders that cannot be read, and the files that are not photos."""
    if unreadable := [f"{name}: {reason}" for files in found for name, reason in files.unreadable]:
        print_text(f"folders that cannot be read: {len(unreadable)}", "yellow")
        print_listing(unreadable, in_json=False)
    if ignored := [name for files in found for name in files.ignored]:
        print_text(f"files ignored because they are not photos: {len(ignored)}")
        print_listing(ignored, in_json=False)


def folders_of_people(folder: Path) -> dict[str, list[Path]]:
    """Sub-folders of photos by person; photos that are in none of them are counted on stderr."""
    from spherecf.photos import PHOTO_SUFFIXES, people_of

    people = people_of(folder)
    if loose := [path for path in folder.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES]:
        print_text(f"photos ignored because they are in no sub-folder of {folder}: {len(loose)}", "yellow")
    return people


def file_to_write(path: Path | None) -> Path | None:
    """Callback of options that name an output file: check early that it can be written."""
    if path is not None:
        check_destination(path)
    return path


def folder_to_write(path: Path | None) -> Path | None:
    """Callback of options that name an output folder: check early that it can be written."""
    if path is not None:
        check_folder(path)
    return path


def run_command(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code: 0 success, 1 failure with one line on stderr, 130 interrupted.

    The command fails if stdout is closed, full or a broken pipe, even if the failed write was made by a
    library. Messages that cannot be written to stderr are dropped. A rank of ``torchrun`` that fails or
    is interrupted ends its process at once.
    """
    with _guarded_streams() as check_stdout:
        try:
            try:
                return command() or 0
            finally:
                check_stdout()
        except SpherecfError as error:
            console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            return _end_rank(1)
        except KeyboardInterrupt:
            console.print("interrupted: run the same command again to continue", highlight=False)
            return _end_rank(130)


def _end_rank(code: int) -> int:
    """End the process at once if it is a rank of ``torchrun``; otherwise return the exit code.

    Called while an exception is handled. The frames that it holds keep the rank's process group alive. Once
    they are freed, the group's destructor may wait for a collective that no other rank joins.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        os._exit(code)
    return code


@contextmanager
def _guarded_streams() -> Iterator[Callable[[], None]]:
    """Guard stdout and stderr. Yields a function that flushes stdout and raises if a write failed."""
    # The next file opened would reuse a closed descriptor, and libraries would print into that file.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    original_streams = sys.stdout, sys.stderr
    guard = _GuardedStream(sys.stdout)
    guarded_stdout = guard.as_text()
    sys.stdout, sys.stderr = guarded_stdout, _GuardedStream(sys.stderr, silent=True).as_text()

    def check_stdout() -> None:
        guarded_stdout.flush()
        if guard.error is not None:
            raise guard.error

    try:
        yield check_stdout
    finally:
        sys.stdout, sys.stderr = original_streams


class _GuardedStream(io.RawIOBase):
    """Byte stream below stdout or stderr that reports the first failed write as `StorageError`.

    Bytes after the failure are dropped, which leaves the interpreter nothing to flush at exit.

    Args:
        stream: text stream to wrap; None if its descriptor was closed at start.
        silent: never raise; drop everything from the first failure on.
    """

    def __init__(self, stream: Any, *, silent: bool = False) -> None:
        self._stream, self._silent = stream, silent
        self.error: StorageError | None = None

    def as_text(self) -> Any:
        """A text stream on top: UTF-8 regardless of the locale, except for a terminal, which keeps its own
        encoding.
        """
        if self._stream is not None and not hasattr(self._stream, "buffer"):
            return self._stream  # a custom text stream without a byte stream below it
        is_terminal = self.isatty()
        encoding = self._stream.encoding if is_terminal and self._stream is not None else "utf-8"
        return io.TextIOWrapper(
            io.BufferedWriter(self), encoding, "backslashreplace", line_buffering=is_terminal or self._silent
        )

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError("the stream is closed")
        return int(self._stream.fileno())

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                if self._stream is None:
                    raise OSError("it is closed")
                buffer = self._stream.buffer
                written: int | None = getattr(buffer, "raw", buffer).write(data)
                if written is None:
                    raise OSError("it is blocked")
                return written
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                self.error = StorageError(
                    f"stdout: could not be written ({reason}); the output is incomplete, but files written "
                    "by the command are complete"
                )
                if not self._silent:
                    raise self.error from error
        return len(data)
