"""File helpers: describing a file's content, hashes, locks, and atomic writes."""

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from uuid import uuid4
from zipfile import ZipFile

from spherecf.errors import StorageError

if os.name == "posix":
    import fcntl

_HEAD = 512  # bytes by which the content is recognised
_QUOTED = 40  # characters quoted from a file of unknown content

NUMPY, SAFETENSORS, TORCH = "a NumPy array (.npy)", "a safetensors file", "a torch file"
SQLITE = "an SQLite database, as a gallery is"
OLD_TORCH, TORCHSCRIPT = "a torch file in the format before 1.6", "a TorchScript archive (torch.jit.save)"

# Descriptions of files that users pass by mistake, by their first bytes, with advice where it is clear.
_CONTENTS = {
    rb".{4}\x00{4}\{[\s\"}]": SAFETENSORS,  # must be first: its length field may look like any of the others
    rb"spherecf\.sealed": "an encrypted file of SphereCF: `spherecf key decrypt` decrypts it",
    rb"version https://git-lfs\.": "a Git LFS pointer, not the file itself: run `git lfs pull`",
    rb"(<!--.*?-->\s*)?<(!doctype html|html|head|body|title)": "an HTML page: download the file itself",
    rb"(<\?xml[^>]*>\s*)?<(Error|AccessDenied)\b": "an error message from a file server: download it again",
    rb"<\?xml": "an XML file",
    rb"[{\[]\s*[\"{\[\d}\]]": "a JSON file",
    rb"\x1f\x8b": "a gzip archive: unpack it first",
    rb"BZh[1-9]": "a bzip2 archive: unpack it first",
    rb"\xfd7zXZ\x00": "an xz archive: unpack it first",
    rb"\x28\xb5\x2f\xfd": "a zstd archive: unpack it first",
    rb"PK\x05\x06": "an empty zip archive",
    rb"SQLite format 3\x00": SQLITE,
    rb"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    rb"Rar!\x1a\x07": "a RAR archive: unpack it first",
    rb".{257}ustar": "a tar archive: unpack it first",
    rb"\x93NUMPY": NUMPY,
    rb"\x89HDF\r\n": "an HDF5 file (Keras or MATLAB)",
    rb"MATLAB [57]": "a MATLAB file",
    rb".{4}TFL3": "a TensorFlow Lite model",
    rb"\x12\x01\x00{6}": "an MXNet parameter file (.params): convert the model to ONNX",
    rb"\x0a\x23\xd7\xce": "a RecordIO file (.rec)",
    rb"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9": OLD_TORCH,
    rb"\x80[\x02-\x05]": "a pickle",
    rb"\x08[\x01-\x1f][\x12\x1a\x22\x28\x32\x3a\x42]": "an ONNX model",
    rb"\xff\xd8\xff": "a JPEG image",
    rb"\x89PNG": "a PNG image",
    rb"%PDF": "a PDF document",
    rb"\x7fELF": "a program",
}


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's content, read in blocks."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe_content(path: str | Path) -> str:
    """Describe what a file is, by its first bytes, for a message that something else was expected.

    Never raises.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "backbone.pth"
        >>> _ = path.write_text("<!DOCTYPE html><html>Sign in</html>")
        >>> describe_content(path)
        'an HTML page: download the file itself'
    """
    path = Path(path)
    try:
        if path.is_dir():
            return "a folder"
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
        if head.startswith(b"PK\x03\x04"):
            return _describe_zip(path)
    except OSError as error:
        return f"not readable ({error.strerror or error})"
    if not head.strip(b"\x00"):
        return "a file that starts with zero bytes only" if head else "an empty file"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for pattern, name in _CONTENTS.items():
        if any(re.match(pattern, start, re.DOTALL | re.IGNORECASE) for start in (head, text)):
            return name
    return _quote(head)


def _describe_zip(path: Path) -> str:
    try:
        with ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # zipfile's own errors, and any other that wrong lengths or names lead to
        return "a truncated or damaged zip archive (torch files are zip archives): download it again"
    if any(name.endswith("/data.pkl") for name in names):
        script = any("/code/" in name for name in names)
        return TORCHSCRIPT if script else TORCH
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        return "an exported program (torch.export.save)"
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays (.npz)"
    return f"a zip archive of {len(names)} files ({', '.join(names)[:_QUOTED]}...): unpack it first"


def _quote(head: bytes) -> str:
    text = head[:_QUOTED].decode("utf-8", errors="ignore")
    if text.isprintable() or text.replace("\n", " ").replace("\t", " ").replace("\r", " ").isprintable():
        return f"a text file beginning with {text!r}"
    return f"a file beginning with the bytes {head[:8].hex(' ')}"


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], object]) -> Path:
    """Call ``write(stream)`` on a temporary file next to ``path``, flush it, then rename it to ``path``.

    A reader sees either the old or the new file, never a partial one, even after kill -9, on a full disk or
    after a power cut. On return the new file is on disk. If two processes write the same file, they take
    turns, and the last one wins. A device or a pipe is written to directly.

    Raises:
        StorageError: the disk is full or not writable, or ``path`` is a folder; an earlier file is unchanged.
    """
    path = Path(path)
    if _is_device(path):
        try:
            with path.open("wb") as stream:
                write(stream)
        except (OSError, RuntimeError) as error:
            raise StorageError(f"{path}: could not be written ({_reason(error)})") from error
        return path
    try:
        make_folder(path.parent)
        with _synced_folder(path.parent), _temporary_file(path) as (temporary, stream):
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
            temporary.replace(path)
    except (OSError, RuntimeError) as error:
        raise StorageError(
            f"{path}: could not be written ({_reason(error)}); the previous file, if any, is "
            "unchanged. Free some space or choose another folder, then run the same command again."
        ) from error
    return path


def _reason(error: OSError | RuntimeError) -> str:
    """The reason of an operating system error; any other error is raised again."""
    # If its stream fails, torch.save raises another error, about positions in the file.
    cause = error if isinstance(error, OSError) else error.__context__
    if not isinstance(cause, OSError):
        raise error
    return cause.strerror or str(cause)


@contextmanager
def _temporary_file(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """The temporary file next to ``path``, open and empty; deleted at the end unless it was renamed."""
    # All processes use one name, under a lock, so that the leftover of a killed process is overwritten.
    temporary, stream = _temporary_path(path), None
    while stream is None:
        stream = _open_for_writing(temporary)
        if not _lock(stream, wait=True):  # no locks on this file system: use a unique name instead
            stream.close()
            temporary = path.with_name(f".{path.name}.{uuid4().hex}.part")
            stream = _open_for_writing(temporary)
        elif not _is_at(stream, temporary):  # the process that held the lock renamed it
            stream.close()
            stream = None
    with stream:
        try:
            stream.truncate()
            yield temporary, stream
        finally:
            with suppress(OSError):
                if _is_at(stream, temporary):
                    temporary.unlink()


def _open_for_writing(path: Path) -> IO[bytes]:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o666), "r+b")


def _lock(stream: IO[bytes], *, wait: bool) -> bool:
    """Lock an open file until it is closed; False if the file system has no locks.

    Raises:
        BlockingIOError: another process holds the lock, and ``wait`` is False.
    """
    try:
        if os.name == "posix":
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return True
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
    return False


def _is_at(stream: IO[bytes], path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    return False


class Lock:
    """A lock on a piece of work; its file contains the process id and is deleted on release.

    The operating system releases the lock when the process ends, however it ends. Where there are no file
    locks (Windows, some network drives), nothing is locked.

    Args:
        path: the lock file.
        work: what is locked, for the message: "runs/head: the folder".
        hint: what to do instead, for the message.

    Raises:
        StorageError: another process holds the lock (the message has its id), or the file cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with Lock(folder / "lock", "the example"):
        ...     held = (folder / "lock").read_text() == str(os.getpid())
        >>> held, list(folder.iterdir())
        (True, [])
    """

    def __init__(self, path: str | Path, work: str, hint: str = "wait for it") -> None:
        self.path = Path(path)
        self._created_folders = [folder for folder in self.path.absolute().parents if not folder.exists()]
        try:
            make_folder(self.path.parent)
            while not self._try_lock(work, hint):
                self._file.close()  # another process deleted the file between opening and locking: try again
        except StorageError:  # a StorageError is also an OSError
            raise
        except OSError as error:
            raise StorageError(
                f"{path}: cannot be written ({error.strerror}); choose a folder that is writable"
            ) from error

    def _try_lock(self, work: str, hint: str) -> bool:
        self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)
        try:
            _lock(self._file, wait=False)
        except BlockingIOError as error:
            holder = self._file.read().decode(errors="replace").strip() or "unknown"
            self._file.close()
            raise StorageError(f"{work} is in use by process {holder}; {hint}") from error
        if not _is_at(self._file, self.path):
            return False
        self._file.truncate()
        self._file.write(str(os.getpid()).encode())
        return True

    def release(self) -> None:
        """Release the lock."""
        with suppress(OSError):
            self.path.unlink()
        self._file.close()
        with suppress(OSError):  # the folder is not empty
            for folder in self._created_folders:
                folder.rmdir()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


@contextmanager
def locked(path: str | Path, work: str) -> Iterator[None]:
    """Lock the work on a file or folder against other processes, by a `Lock` next to it.

    Nothing is locked where nothing can be written, e.g. on a read-only disk.

    Raises:
        StorageError: another process holds the lock.

    Example:
        >>> import tempfile
        >>> with locked(Path(tempfile.mkdtemp()) / "rows", "the example"):
        ...     pass
    """
    real = Path(path).resolve()
    try:
        _check_folder(real.parent)
    except OSError:
        yield
        return
    with Lock(f"{real}-lock", f"{path}: {work}"):
        yield


def make_folder(folder: str | Path) -> None:
    """Create a folder and its missing parents, and flush them to disk.

    Raises:
        OSError: it cannot be created.
    """
    folder = Path(folder).absolute()
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        sync_folder(path.parent)


def sync_folder(folder: str | Path) -> None:
    """Flush a folder's directory entries to disk: files created, renamed and deleted in it.

    Raises:
        OSError: the disk failed.
    """
    with _synced_folder(folder):
        pass


@contextmanager
def _synced_folder(folder: str | Path) -> Iterator[None]:
    """Flush a folder's directory entries to disk at the end of the block.

    The folder is opened at the beginning: another process may rename it once it contains the files that the
    block writes, as rank 0 does with the folder of a complete checkpoint.
    """
    descriptor = None
    if os.name == "posix":  # Windows has no such call; NTFS journals directory entries
        with suppress(PermissionError):  # the folder is writable but not readable
            descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield
        try:
            if descriptor is not None:
                os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # some network drives
                raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def check_destination(path: str | Path) -> None:
    """Check that `write_atomically` can write a file, before the work whose result it will hold.

    Raises:
        StorageError: ``path`` is a folder, a parent is not a folder or not writable, or the name is too long.

    Example:
        >>> check_destination("/")
        Traceback (most recent call last):
        spherecf.errors.StorageError: /: is a folder; give the name of a file in it
    """
    path = Path(path)
    if _is_device(path):
        return
    try:
        with suppress(FileNotFoundError, NotADirectoryError):  # `_check_folder` names the parent
            _temporary_path(path).stat()
        _check_folder(path.absolute().parent)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}); choose another name or folder"
        ) from error


def check_folder(path: str | Path) -> None:
    """Check that files can be written to a folder, which need not exist yet.

    Raises:
        StorageError: the folder, or a parent, is not a folder or not writable.
    """
    try:
        _check_folder(Path(path).absolute())
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written to ({error.strerror}); choose another folder"
        ) from error


def _check_folder(folder: Path) -> None:
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        if is_on_read_only_disk(folder):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        raise PermissionError(errno.EACCES, f"no permission to write in {folder}")


def is_on_read_only_disk(folder: Path) -> bool:
    """Whether the disk of an existing folder is mounted read-only; False where the system does not say."""
    return os.name == "posix" and bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _is_device(path: Path) -> bool:
    if os.path.isdir(path):  # noqa: PTH112, pathlib raises if the name is too long
        raise StorageError(f"{path}: is a folder; give the name of a file in it")
    return os.path.exists(path) and not os.path.isfile(path)  # noqa: PTH110, PTH113, likewise


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
