"""Read features dumped by other tools as `Embeddings`: .npy, .npz with the usual array names, and text."""

import io
import math
import re
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from zipfile import ZipFile

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from spherecf.common.files import describe_content, sha256_file
from spherecf.common.parsing import composed, has_image_suffix, identity_order, is_number, is_whole, reading
from spherecf.data.text import SEPARATORS, UTF16, iter_lines, split_cells
from spherecf.embeddings import Embeddings
from spherecf.errors import FileFormatError, InputError

_SUPPORTED = (
    "Supported: .npy, .npz, and text lines `image f1 f2 ...` with decimal points (MagFace's feat.list; .csv, "
    "also with a header image,f1,f2,...); pickles are not opened."
)
_MAX_HEADER = 10_000  # bytes: NumPy's limit for a header


def load_npy(path: Path) -> NDArray[Any]:
    """The array in a .npy file, memory-mapped.

    Raises:
        FileFormatError: the file is damaged or truncated, holds several arrays, or is pickled.
    """
    with path.open("rb") as stream:
        shape, order, dtype, start = _array_header(path, stream.read(_MAX_HEADER), "", path.stat().st_size)
    if not math.prod(shape):
        return np.zeros(shape, dtype)
    with reading(path, "an array"):
        return np.memmap(path, dtype, "r", start, shape, order)


def load_npz(path: Path, names: Mapping[str, Sequence[str]]) -> dict[str, NDArray[Any]]:
    """The arrays of a .npz under this library's names, found by the aliases in ``names``.

    Raises:
        FileFormatError: the file is not such an archive, several arrays have the same meaning, or an array is
            damaged or pickled.
    """
    with reading(path, "a .npz", "Write it again, with numpy.savez."):
        archive = ZipFile(path)
    with archive:
        members = [info.filename for info in archive.infolist()]
        arrays: dict[str, NDArray[Any]] = {}
        for name, aliases in names.items():
            matches = [member for member in members if member.removesuffix(".npy").lower() in aliases]
            if len(matches) > 1:
                candidates = [member.removesuffix(".npy") for member in matches]
                raise FileFormatError(
                    path, f"several arrays could be the {name}: {', '.join(candidates)}.", "Keep one of them."
                )
            for member in matches:
                with reading(path, f"a .npz (array {member!r})", "Write it again, with numpy.savez."):
                    arrays[name] = _read_member(path, archive, member)
    if "features" not in arrays:
        present = sorted(member.removesuffix(".npy") for member in members if member.endswith(".npy"))
        if not present:
            raise describe_dump(path)
        expected = " or ".join(names["features"])
        raise FileFormatError(
            path,
            f"expected an array named {expected}, but the file has only {', '.join(present[:20])}.",
            "Save the features under one of these names.",
        )
    return arrays


def load_text(path: Path, keyed: bool) -> dict[str, NDArray[Any]]:
    """``features`` and, unless the rows have none, ``keys`` from lines ``image f1 f2 ...``.

    Args:
        path: UTF-8 text, separated by tabs, commas, semicolons or spaces. A header must number the features.
        keyed: the caller provides keys, so rows may consist of features only.

    Raises:
        FileFormatError: the file is not such text, or a line does not fit (with its number).
    """
    separator, first, width = _text_layout(path)
    names, values = list[str](), array("f")
    for number, line in iter_lines(path):
        if number < first:
            continue
        cells = split_cells(line, separator)
        if len(cells) != width:
            raise FileFormatError(
                path, f"line {number}: expected {width} cells as on line {first}, got {len(cells)}.",
                "If names contain spaces, separate the cells by tabs or commas.",
            )  # fmt: skip
        names.append(cells[0])
        try:
            values.extend(map(float, cells[1:]))
        except ValueError as error:
            raise FileFormatError(path, f"line {number}: expected `image f1 f2 ...` ({error}).") from error
    features = np.frombuffer(values, np.float32).reshape(len(names), width - 1)
    if not all(map(is_number, names)):
        return {"features": features, "keys": np.array(names)}
    whole = all(map(is_whole, names)) and len({*names}) == len(names)
    if keyed and whole and len(names) > 1:
        raise FileFormatError(
            path, "the first column is ambiguous: its numbers could be image names or features.",
            "If they are image names, do not pass keys; if they are row numbers, remove that column.",
        )  # fmt: skip
    if whole and not keyed:
        return {"features": features, "keys": np.array(names)}
    return {"features": np.column_stack([np.array(names, np.float32), features])}


def describe_dump(path: Path) -> FileFormatError:
    """The error for a file that is not a dump of features."""
    return FileFormatError(path, f"expected features, but this is {describe_content(path)}.", _SUPPORTED)


def _text_layout(path: Path) -> tuple[str | None, int, int]:
    """(separator, number of the first line after a header, number of cells)."""
    number, line = next(iter_lines(path), (0, ""))
    rows = [(separator, split_cells(line, separator)) for separator in SEPARATORS]
    for separator, cells in rows:
        if len(cells) < 3:
            continue
        if _is_header(cells):
            return separator, number + 1, len(cells)
        if all(map(is_number, cells[1:])):
            return separator, number, len(cells)
    # A wrong line of features still has many cells, most of them numbers, with the right separator.
    cells = max((cells for _, cells in rows), key=lambda cells: sum(map(is_number, cells[1:])))
    if sum(map(is_number, cells[1:])) < 2:
        raise describe_dump(path)
    column, cell = next((i, cell) for i, cell in enumerate(cells[1:], 2) if not is_number(cell))
    raise FileFormatError(
        path,
        f"line {number}: expected `image f1 f2 ...` or a header that numbers the features, but cell {column} "
        f"of {len(cells)} is {cell[:40]!r}.",
        "Cells are separated by tabs, commas, semicolons or spaces; numbers have a decimal point.",
    )


def _is_header(cells: Sequence[str]) -> bool:
    """Whether the cells after the first one are numbered: f0, f1, ..., or 0, 1, ..."""
    matches = [re.fullmatch(r"(\D*[A-Za-z_ ]\D*|)(\d{1,9})", cell) for cell in cells[1:]]
    words = {match[1] for match in matches if match}
    numbers = [int(match[2]) for match in matches if match]
    in_order = numbers in ([*range(len(matches))], [*range(1, len(matches) + 1)])
    return len(words) == 1 and in_order and not is_number(cells[0]) and not has_image_suffix(cells[0])


def _read_member(path: Path, archive: ZipFile, member: str) -> NDArray[Any]:
    content = archive.read(member)
    shape, order, dtype, start = _array_header(path, content[:_MAX_HEADER], f"{member}: ", len(content))
    return np.frombuffer(content, dtype, offset=start).reshape(shape, order=order)


def _array_header(
    path: Path, start_bytes: bytes, name: str, size: int
) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any], int]:
    """Shape, order, dtype and offset of an array, checked against the size of its file in bytes."""
    width = 2 if start_bytes[6:7] == b"\1" else 4
    start = 8 + width + int.from_bytes(start_bytes[8 : 8 + width], "little")
    # A longer header is rejected here: NumPy's own error would advise the user to trust the file.
    if start_bytes[:6] != b"\x93NUMPY" or start > len(start_bytes):
        raise FileFormatError(path, f"{name}not readable as a .npy: it has no valid header.", _SUPPORTED)
    with reading(path, f"{name}a .npy", "Write it again, with numpy.save."):
        header = io.BytesIO(start_bytes)
        version = np.lib.format.read_magic(header)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(header)
    if dtype.hasobject:
        raise FileFormatError(
            path, f"{name}an array of Python objects is stored as a pickle, and pickles are not opened.",
            "Save features as numbers, numpy.array(features, dtype=float), and names as strings, dtype=str.",
        )  # fmt: skip
    expected, available = math.prod(shape) * dtype.itemsize, size - start
    if expected != available or min(shape, default=0) < 0:
        raise FileFormatError(
            path,
            f"{name}not readable as a .npy: {dtype} of shape {shape} takes {expected} bytes, but it has "
            f"{available}.",
            "It is truncated, or several arrays were saved into one file.",
        )
    return shape, "F" if fortran else "C", dtype, start


_ALIASES = {
    "features": ("embeddings", "embedding", "features", "feature", "feats", "img_feats", "mu"),
    "keys": ("keys", "names", "paths", "image_names", "image_paths", "filenames", "files"),
    "labels": ("labels", "targets", "ids"),
    "norm": ("norm", "norms", "feature_norm"),
    "detector_score": ("detector_score", "detector_scores", "faceness_scores", "det_score"),
    "log_kappa": ("log_kappa", "log_kappas"),
    "kappa": ("kappa", "kappas", "concentration"),
    "sigma": ("sigma", "sigmas", "std"),
    "sigma_sq": ("sigma_sq", "variance", "variances", "var"),
    "log_sigma_sq": ("log_sigma_sq", "log_variance", "log_var"),
}
_CONCENTRATIONS = ("log_kappa", "kappa", "sigma", "sigma_sq", "log_sigma_sq")
_BLOCK = 1 << 12  # rows converted at once
_MIN_WIDTH = 128  # columns in which halves are compared: in fewer they can agree by chance
_SAMPLE = 1000  # rows whose halves are compared
_AGREE, _DISAGREE = 0.5, 0.2  # median cosine of halves: about 0.98 with a mirror image, 0.01 without


def read_features(
    path: str | Path,
    keys: Sequence[str] | None = None,
    *,
    halves: bool | None = None,
    flip: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Embeddings:
    """Read raw features dumped by other tools, with the keys, labels and qualities stored next to them.

    A ``.npy`` holds the features, (n, d) of any float type. A ``.npz`` holds them under one of the names
    ``embeddings``, ``features``, ``feats``, ``img_feats``, ... Optional arrays are ``keys`` (or ``names``,
    ``paths``, ``image_names``, ...), ``labels``, ``norm``, ``detector_score`` (or ``faceness_scores``) and
    one concentration: ``log_kappa``, ``kappa``, or a Gaussian's ``sigma``, ``sigma_sq`` or ``log_sigma_sq``.
    A Gaussian's parameter of shape (n,) becomes kappa = 1 / sigma^2; one of shape (n, d) becomes the
    ``log_precision`` of probabilistic face embeddings. Without a concentration ``log_kappa`` is 0 for all
    images and the provenance has ``"log_kappa": "constant"``. Labels are whole numbers or names; -1 and ""
    mean unknown.

    Text lines are ``image f1 f2 ...``, separated by tabs, commas, semicolons or spaces: MagFace's
    ``feat.list``, and .csv, where a header may number the features (``image,f0,f1``). With ``keys`` the names
    may be missing.

    The L2 norm of each feature is stored as the extra ``norm``, unless the file has norms. Rows that contain
    NaN or infinity, or only zeros, are added to ``skipped`` (failures to acquire).

    Args:
        path: the dump; nothing in it is unpickled.
        keys: (n,) key of each row; by default those in the file. If it has names, they may differ in folder
            and extension only.
        halves: whether each row is (2 d,): the features of the image, then those of its mirror image. By
            default it is not, which is checked: from 128 columns on, rows whose halves agree are refused.
        flip: with ``halves``, how to combine the two: "sum" adds them (``norm`` is then half the length of
            the sum), "none" uses the original image only. Without ``halves``, what was done before the dump,
            for the provenance; None if unknown.
        provenance: entries to add, e.g. ``{"alignment": "arcface112"}``.

    Raises:
        FileFormatError: the file is damaged, truncated or pickled, has no features or no keys, its rows
            differ in length, or its keys or labels are neither names nor whole numbers.
        InputError: ``halves`` with an odd number of columns, without ``flip`` or contradicted by the rows;
            keys that are repeated, too few, too many or those of other images; or a concentration that is not
            positive and finite.

    Example:
        >>> from pathlib import Path
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "dump.npz"
        >>> np.savez(path, img_feats=np.array([[3.0, 4.0, 3.0, 0.0], [0.0] * 4]), names=["a.jpg", "b.jpg"])
        >>> e = read_features(path, halves=True, flip="none")
        >>> e.mu.tolist(), e.extras["norm"].tolist(), e.skipped, e.provenance["log_kappa"]
        ([[0.6..., 0.8...]], [5.0], [('b.jpg', 'all features are 0')], 'constant')
    """
    if flip not in (None, "none", "sum"):
        raise InputError(f"flip: expected 'none' or 'sum', got {flip!r}")
    path = Path(path)
    arrays = _load(path, keys is not None)
    if halves and flip is None:
        raise InputError("halves: pass flip='sum' or flip='none' to say how the two halves are combined")
    features = arrays["features"]
    _check_halves(path, features, halves)
    names = _keys(path, keys, arrays, len(features))
    mu, norm, reasons = _directions(features, flip if halves else None)
    valid_rows = np.flatnonzero([not reason for reason in reasons])
    labels, identities = _labels(path, arrays, valid_rows)
    extras = {"norm": norm[valid_rows]}
    for name in ("norm", "detector_score"):
        if name in arrays:
            extras[name] = _number_column(path, arrays, name, len(features))[valid_rows]
    log_kappa, log_precision, source = _confidence(
        path, arrays, valid_rows, features.shape[1] // (2 if halves else 1)
    )
    return Embeddings(
        mu[valid_rows],
        log_kappa,
        [names[row] for row in valid_rows.tolist()],
        labels,
        identities,
        extras,
        [(names[row], reason) for row, reason in enumerate(reasons) if reason],
        {
            "features": sha256_file(path),
            "log_kappa": source,
            **({} if flip is None else {"flip": flip}),
            **(provenance or {}),
        },
        log_precision,
    )


def _load(path: Path, keyed: bool) -> dict[str, NDArray[Any]]:
    """The arrays by this library's names, always with ``features`` (n, d)."""
    try:
        with path.open("rb") as stream:
            start = stream.read(4096)
    except OSError as error:
        reason = (
            "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        )
        raise FileFormatError(path, f"{reason}.") from error
    if start.startswith(b"\x93NUMPY"):
        arrays = {"features": load_npy(path)}
    elif start.startswith(b"PK\x03\x04"):
        arrays = load_npz(path, _ALIASES)
    elif b"\0" in start and not start.startswith(UTF16):
        raise describe_dump(path)
    else:
        arrays = load_text(path, keyed)
    features = arrays["features"]
    if features.ndim != 2 or not len(features) or features.shape[1] < 2 or features.dtype.kind != "f":
        got = f"{features.dtype} of shape {features.shape}"
        raise FileFormatError(path, f"expected features (n, d) of a float type, got {got}.")
    concentrations = [name for name in _CONCENTRATIONS if name in arrays]
    if len(concentrations) > 1:
        raise FileFormatError(
            path,
            f"expected one concentration per image, got several: {', '.join(concentrations)}.",
            "Keep one of them.",
        )
    return arrays


def _keys(path: Path, keys: Sequence[str] | None, arrays: Mapping[str, NDArray[Any]], n: int) -> list[str]:
    if keys is None and "keys" not in arrays:
        raise FileFormatError(
            path,
            f"its {n} rows have no keys (names of the images).",
            "Pass the keys (a file with one per line), in the order of the rows.",
        )
    # Slashes separate folders, as in all keys.
    stored = _text_column(path, arrays, "keys", n) if "keys" in arrays else []
    stored = [word.replace("\\", "/") for word in stored]
    if keys is None:
        return stored
    names = list(keys)
    if len(names) != n:
        raise InputError(f"{path}: expected one key per row, got {len(names)} keys for {n} rows of features")
    if stored and arrays["keys"].dtype.kind in "US":
        for row, (name, key) in enumerate(zip(stored, names), 1):
            if PurePosixPath(name).stem != PurePosixPath(key).stem:
                raise InputError(
                    f"{path}: row {row} is of {name!r}, but the key passed for it is {key!r}; leave out the "
                    "keys (--keys, --meta) to use the names in the file, or pass them in its order"
                )
    return names


def _check_halves(path: Path, features: NDArray[Any], halves: bool | None) -> None:
    """Check that rows are an image and its mirror image, (n, 2 d), if and only if ``halves`` says so.

    The features of an image and of its mirror image are nearly equal; the halves of one embedding are as
    unrelated as those of two images. The mean row is subtracted first, because features may share a sign.
    """
    n, width = features.shape
    if halves and width % 2:
        raise InputError(f"{path}: halves: expected an even number of features per row, got {width}")
    if halves is False or width % 2 or width < _MIN_WIDTH:
        return
    rows = np.asarray(features[:: -(-n // _SAMPLE)], np.float64)
    rows = rows[np.isfinite(rows).all(1)]
    rows -= rows.mean(0) if len(rows) else 0
    left, right = np.hsplit(rows, 2)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines = np.vecdot(left, right)[lengths > 0] / lengths[lengths > 0]
    agreement = float(np.median(cosines)) if cosines.size else np.nan  # of one row nothing can be said
    if halves is None and agreement > _AGREE:
        raise InputError(
            f"{path}: the two halves of its rows of {width} features agree (median cosine {agreement:.2f}), "
            "as those of an image and of its mirror image do. If they are, pass halves=True and flip='sum' "
            "(--halves --flip sum); if not, pass halves=False (--no-halves)"
        )
    if halves and agreement < _DISAGREE:
        raise InputError(
            f"{path}: halves: expected the features of an image, then of its mirror image, but the two "
            f"halves of its rows of {width} features are unrelated (median cosine {agreement:.2f}); they are "
            "one embedding: leave out halves (--halves)"
        )


def _directions(
    features: NDArray[Any], flip: str | None
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " n"], list[str]]:
    """(unit directions, norms, reason why a row has no direction or ""), computed block by block."""
    n, width = features.shape
    dim = width if flip is None else width // 2
    mu, norm = np.zeros((n, dim), np.float32), np.zeros(n, np.float32)
    reasons: list[str] = []
    for start in range(0, n, _BLOCK):
        rows = slice(start, start + _BLOCK)
        block = np.asarray(features[rows], np.float64)
        total = block[:, :dim] + block[:, dim:] if flip == "sum" else block[:, :dim]
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            length = np.linalg.norm(total, axis=1)
            mu[rows] = total / length[:, None]
        norm[rows] = length / 2 if flip == "sum" else length
        zero = "both halves cancel" if flip == "sum" else "all features are 0"
        for size in length.tolist():
            reasons.append("" if 0 < size < np.inf else zero if size == 0 else "NaN or infinite features")
    return mu, norm, reasons


def _labels(
    path: Path, arrays: Mapping[str, NDArray[Any]], good: NDArray[Any]
) -> tuple[NDArray[Any] | None, list[str]]:
    if "labels" not in arrays:
        return None, []
    column = arrays["labels"]
    if column.dtype.kind == "f" and np.array_equal(column, np.rint(column)) and np.abs(column).max() < 2**53:
        # im2rec and MXNet store whole numbers as floats.
        arrays = {**arrays, "labels": column.astype(np.int64)}
    names = list(map(composed, _text_column(path, arrays, "labels", len(arrays["features"]))))
    valid_names = [names[row] for row in good.tolist()]
    identities = identity_order({*valid_names} - {"-1", ""})
    index = {name: label for label, name in enumerate(identities)}
    return np.array([index.get(name, -1) for name in valid_names], np.int64), identities


def _confidence(
    path: Path, arrays: Mapping[str, NDArray[Any]], good: NDArray[Any], dim: int
) -> tuple[NDArray[Any], NDArray[Any] | None, str]:
    """(log_kappa, log_precision or None, source of the concentration for the provenance)."""
    n = len(arrays["features"])
    for name in _CONCENTRATIONS:
        if name not in arrays:
            continue
        per_dimension = name not in ("log_kappa", "kappa") and arrays[name].shape == (n, dim)
        column = np.asarray(
            arrays[name] if per_dimension else _number_column(path, arrays, name, n), np.float64
        )[good]
        if not name.startswith("log_"):
            bad = np.flatnonzero(~((column > 0) & np.isfinite(column)).reshape(len(column), -1).all(1))
            if bad.size:
                hint = f" (if these are logarithms, name the array log_{name})"
                raise InputError(
                    f"{path}: {name}: expected positive finite values, but {bad.size} of {len(column)} are "
                    f"not, first in row {good[bad[0]]}{hint if f'log_{name}' in _ALIASES else ''}"
                )
            column = np.log(column)
        column *= {"log_kappa": 1, "kappa": 1, "sigma": -2, "sigma_sq": -1, "log_sigma_sq": -1}[name]
        if per_dimension:
            return np.log(np.exp(column).mean(1)), column, f"mean of 1 / variance, from {name}"
        return column, None, f"{'' if 'kappa' in name else '1 / variance, '}from {name}"
    return np.zeros(len(good)), None, "constant"


def _text_column(path: Path, arrays: Mapping[str, NDArray[Any]], name: str, n: int) -> list[str]:
    column = arrays[name]
    if column.shape not in ((n,), (n, 1)) or column.dtype.kind not in "iuUS":
        got = f"{column.dtype} of shape {column.shape}"
        raise FileFormatError(
            path, f"{name}: expected {n} names or whole numbers, one per row of features, got {got}."
        )
    with reading(path, f"UTF-8 text, the {name}"):  # an array of strings may contain any bytes
        decoded = np.char.decode(column, "utf-8") if column.dtype.kind == "S" else column
        names = [str(word) for word in decoded.reshape(n).tolist()]
        "".join(names).encode()
    return names


def _number_column(path: Path, arrays: Mapping[str, NDArray[Any]], name: str, n: int) -> NDArray[Any]:
    column = arrays[name]
    if column.shape not in ((n,), (n, 1)) or column.dtype.kind not in "fiu":
        got = f"{column.dtype} of shape {column.shape}"
        raise FileFormatError(path, f"{name}: expected {n} numbers, one per row of features, got {got}.")
    return column.reshape(n)
