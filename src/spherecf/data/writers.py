"""Write data sets in the usual layouts: complete or not at all, with every image decoded once as a check."""

import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from spherecf.common.files import locked, make_folder, sync_folder, write_atomically
from spherecf.common.progress import progress
from spherecf.data.folder import IdentityFolder
from spherecf.data.image import IMAGE_SUFFIXES, encode_image, image_suffix
from spherecf.data.list import ListFile
from spherecf.data.pairbin import PairBin, fold_numbers
from spherecf.data.pairs import PairList
from spherecf.data.recordio import EXACT, pack_record
from spherecf.data.records import RecordFile
from spherecf.data.source import ImageBatch, ImageSource, Skipped, iter_images
from spherecf.errors import InputError, SpherecfError, StorageError


def write_records(
    source: ImageSource,
    folder: str | Path,
    *,
    skipped: list[Skipped] | None = None,
    workers: int | None = None,
) -> RecordFile:
    """Write ``train.rec``, ``train.idx``, ``property`` and ``names.txt`` (the keys) into a new folder.

    Record 0 is the header; records 1..n are the images, ordered by identity; then follows one record per
    identity with the range of its images. JPEG and PNG are copied unchanged, other formats stored as PNG.

    Args:
        source: images of one size, each with an identity.
        folder: must not exist, or be empty.
        skipped: list that receives broken images, which are left out; without it the first one raises.
        workers: number of decoding threads.

    Raises:
        InputError: images without identity, keys with tabs or line breaks, too many images, no image left to
            write, or ``folder`` is not empty.
        ImageError: an image is broken or of another size, and ``skipped`` is not given.
        StorageError: the disk is full or not writable; no partial output is left behind.

    Example:
        >>> import tempfile
        >>> from spherecf.data import orl_faces
        >>> written = write_records(orl_faces().subset(range(20)), f"{tempfile.mkdtemp()}/orl")
        >>> len(written), written.keys[0], written.image(0).shape
        (20, 's1/1.pgm', (112, 92, 3))
    """
    without_identity = int((source.labels < 0).sum())
    if without_identity:
        raise InputError(
            f"{source.name}: RecordIO needs an identity for each image, but {without_identity} of "
            f"{len(source)} have none."
        )
    if len(source) + len(source.identities) >= EXACT:
        raise InputError(
            f"{source.name}: a RecordIO file holds at most {EXACT - 1} images and identities in total, got "
            f"{len(source) + len(source.identities)}; write several files."
        )
    if any(mark in key for key in source.keys for mark in "\t\r\n"):
        raise InputError(f"{source.name}: a key contains a tab or a line break, which names.txt cannot hold.")
    with _new_folder(folder) as temporary:
        _write_record_files(source, temporary, skipped, workers)
    return RecordFile(folder)


def _write_record_files(
    source: ImageSource, folder: Path, skipped: list[Skipped] | None, workers: int | None
) -> None:
    order = np.argsort(source.labels, kind="stable")
    counts = np.zeros(len(source.identities), np.int64)
    number, size = 0, (0, 0)
    with (
        (folder / "train.rec").open("wb") as records,
        (folder / "train.idx").open("w") as index,
        (folder / "names.txt").open("w", encoding="utf-8") as names,
    ):

        def add(labels: tuple[float, ...], content: bytes = b"") -> None:
            nonlocal number
            index.write(f"{number}\t{records.tell()}\n")
            records.write(pack_record(number, labels, content))
            number += 1

        add((0.0, 0.0))  # placeholder for the header, whose numbers are known at the end
        for batch in _batches(source, order, "writing records", skipped, workers):
            size = batch.images.shape[1:3]
            for row, image, encoded in zip(batch.rows.tolist(), batch.images, batch.encoded):
                names.write(f"{number}\t{source.keys[row]}\n")
                add((float(source.labels[row]),), encoded if image_suffix(encoded) else encode_image(image))
                counts[source.labels[row]] += 1
        images = number - 1
        if not images:
            raise InputError(f"{source.name}: no image to write: all {len(source)} are broken.")
        ends = np.cumsum(counts) + 1
        for start, stop in zip((ends - counts).tolist(), ends.tolist()):
            add((float(start), float(stop)))
        records.seek(0)
        records.write(pack_record(0, (images + 1.0, float(number))))
    (folder / "property").write_text(f"{len(counts)},{size[0]},{size[1]}")


def write_folder(
    source: ImageSource,
    folder: str | Path,
    *,
    skipped: list[Skipped] | None = None,
    workers: int | None = None,
) -> IdentityFolder:
    """Write ``folder/<identity>/<key>``; files are copied byte for byte.

    A key without a known image extension gets one, and its file is converted to PNG unless it is JPEG or PNG.
    A key that starts with its identity is not prefixed again, so a folder that is read and written keeps its
    keys. Images without identity go into the folder itself, with slashes in their keys replaced by
    underscores.

    Args:
        source: images of one size.
        folder: must not exist, or be empty.
        skipped: list that receives broken images, which are left out; without it the first one raises.
        workers: number of decoding threads.

    Raises:
        InputError: a key leads out of the folder, two keys give the same path, no image is left to write, or
            ``folder`` is not empty.
        ImageError: an image is broken or of another size, and ``skipped`` is not given.
        StorageError: the disk is full or not writable; no partial output is left behind.

    Example:
        >>> import tempfile
        >>> from spherecf.data import orl_faces
        >>> write_folder(orl_faces().subset(range(20)), f"{tempfile.mkdtemp()}/few")
        IdentityFolder('few', images=20, identities=2)
    """
    with _new_folder(folder) as temporary:
        for _ in _write_files(source, temporary, skipped, workers):
            pass
    return IdentityFolder(folder)


def write_list(
    source: ImageSource,
    folder: str | Path,
    *,
    skipped: list[Skipped] | None = None,
    workers: int | None = None,
) -> ListFile:
    """Write ``folder/images/<identity>/<key>`` and ``folder/list.txt``, with lines of path, tab and identity.

    Files are named as by `write_folder`. The list has -1 for images without identity, and the identity's name
    for all others, so numeric and textual names are preserved.

    Args:
        source: images of one size.
        folder: must not exist, or be empty.
        skipped: list that receives broken images, which are left out; without it the first one raises.
        workers: number of decoding threads.

    Raises:
        InputError: the name of an identity contains a tab or a line break, is empty or is -1; and as
            `write_folder`.
        ImageError: an image is broken or of another size, and ``skipped`` is not given.
        StorageError: the disk is full or not writable; no partial output is left behind.

    Example:
        >>> import tempfile
        >>> from spherecf.data import orl_faces
        >>> written = write_list(orl_faces().subset(range(20)), f"{tempfile.mkdtemp()}/few")
        >>> written.path.name, written.keys[0], written.identities
        ('list.txt', 'images/s1/1.pgm', ['s1', 's10'])
    """
    invalid = [name for name in source.identities if name.strip() in ("", "-1") or set(name) & set("\t\r\n")]
    if invalid:
        raise InputError(
            f"{source.name}: {len(invalid)} names of identities cannot be written to a list (empty, -1, or "
            f"with a tab or line break), first {invalid[0]!r}."
        )
    with _new_folder(folder) as temporary, (temporary / "list.txt").open("w", encoding="utf-8") as stream:
        for row, path in _write_files(source, temporary / "images", skipped, workers):
            label = int(source.labels[row])
            stream.write(f"images/{path}\t{source.identities[label] if label >= 0 else -1}\n")
    return ListFile(Path(folder) / "list.txt", name=Path(folder).resolve().name)


def _write_files(
    source: ImageSource, folder: Path, skipped: list[Skipped] | None, workers: int | None
) -> Iterator[tuple[int, str]]:
    """Write the image files; yields (row, path within ``folder``) of each."""
    written: dict[str, int] = {}
    for batch in _batches(source, np.arange(len(source)), "writing files", skipped, workers):
        for row, image, encoded in zip(batch.rows.tolist(), batch.images, batch.encoded):
            path = _relative_path(source, row)
            if PurePosixPath(path).suffix.lower() not in IMAGE_SUFFIXES:
                encoded = encoded if image_suffix(encoded) else encode_image(image)
                path += image_suffix(encoded)
            if written.setdefault(path, row) != row:
                key, earlier = source.keys[row], source.keys[written[path]]
                raise InputError(f"{source.name}: {key} and {earlier} would both be written to {path}.")
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(encoded)
            yield row, path
    if not written:
        raise InputError(f"{source.name}: no image to write: all {len(source)} are broken.")


def _relative_path(source: ImageSource, row: int) -> str:
    key, label = source.keys[row].lstrip("/"), int(source.labels[row])
    identity = source.identities[label].replace("/", "_") if label >= 0 else ""
    if not identity:
        path = key.replace("/", "_")
    else:
        path = key if key.startswith(identity + "/") else f"{identity}/{key}"
    # Keys may come from a downloaded names file: none may leave the folder, or be hidden from
    # `IdentityFolder`.
    if any(part.startswith(".") for part in path.split("/")) or "\0" in path or "\\" in path:
        raise InputError(
            f"{source.name}: key {key!r} is not a safe file name: a part starts with a dot, or it contains a "
            "backslash or a zero byte."
        )
    return path


def write_pair_bin(source: ImageSource, pairs: PairList, path: str | Path) -> PairBin:
    """Write a pair file: a pickle (protocol 4) of (encoded images, mated flags), with pairs ordered by fold.

    The format does not store folds: readers split it into ten of (nearly) equal size, so ``pairs`` must have
    exactly these.

    Raises:
        InputError: keys that are not in ``source``, or folds that the format cannot express.
        ImageError: an image is broken or of another size.
        StorageError: the disk is full or not writable; an earlier file is unchanged.

    Example:
        >>> import tempfile
        >>> from spherecf.data import orl_faces
        >>> left, right = orl_faces().keys[:10], orl_faces().keys[10:20]
        >>> pairs = PairList("few", left, right, np.zeros(10, bool), np.arange(10))
        >>> write_pair_bin(orl_faces(), pairs, f"{tempfile.mkdtemp()}/few.bin")
        PairBin('few', images=20, identities=0)
    """
    left, right = pairs.rows(source.keys)
    order = np.argsort(pairs.fold, kind="stable")
    if not np.array_equal(pairs.fold[order], fold_numbers(len(pairs))):
        raise InputError(
            f"{pairs.name}: a pair file needs ten folds of equal size (the first ones may have one pair "
            f"more), got folds of {np.bincount(pairs.fold).tolist()} pairs."
        )
    encoded: dict[int, bytes] = {}
    for batch in _batches(source, np.union1d(left, right), "reading pairs", None, None):
        encoded.update(zip(batch.rows.tolist(), batch.encoded))
    images = [encoded[row] for pair in order.tolist() for row in (int(left[pair]), int(right[pair]))]
    content = (images, pairs.mated[order].tolist())
    write_atomically(path, lambda stream: pickle.dump(content, stream, protocol=4))
    return PairBin(path)


def _batches(
    source: ImageSource,
    rows: np.ndarray,
    description: str,
    skipped: list[Skipped] | None,
    workers: int | None,
) -> Iterator[ImageBatch]:
    on_error: Literal["raise", "skip"] = "raise" if skipped is None else "skip"
    skipped_before = len(skipped or ())
    with progress(description, len(rows)) as advance:
        for batch in iter_images(
            source, rows, workers=workers, on_error=on_error, skipped=skipped, encoded=True
        ):
            yield batch
            total = len(skipped or ())
            advance(len(batch.rows) + total - skipped_before, f"{total} skipped" if total else None)
            skipped_before = total


@contextmanager
def _new_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder next to ``folder``, renamed to it on success and deleted on failure."""
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(
            f"{folder}: exists already and is not an empty folder; it is not overwritten, choose another "
            "name."
        )
    temporary = folder.parent / f".{folder.name}.part"
    with locked(folder, "this folder"):
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
        try:
            make_folder(temporary)
            yield temporary
            os.sync()  # one call for all files, of which there may be a million
            temporary.replace(folder)
            sync_folder(folder.parent)
        except SpherecfError:
            raise
        except OSError as error:
            raise StorageError(
                f"{folder}: could not be written ({error.strerror or error}). "
                "Free some space or choose another folder."
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
