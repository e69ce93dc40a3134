"""Features dumped by other tools, as embeddings: .npy, .npz with the usual names and shapes, and text."""

import io
import math
import re
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from zipfile import ZipFile

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from spherecf.common.files import describe_content, sha256_file
from spherecf.common.parsing import composed, has_image_suffix, identity_order, is_number, is_whole, reading
from spherecf.data.text import SEPARATORS, iter_lines, split_cells
from spherecf.embeddings import Embeddings
from spherecf.errors import FileFormatError, InputError

_READ = (
    "Read are .npy, .npz, and text lines `image f1 f2 ...` (feat.list of MagFace, .csv); pickles are not "
    "opened."
)
_HEADER = 10_000  # bytes: what NumPy reads at most


def load_npy(path: Path) -> NDArray[Any]:
    """The array of a .npy, mapped.

    Raises:
        FileFormatError: damaged, truncated, more than one array, or pickled.
    """
    with path.open("rb") as stream:
        shape, order, dtype, start = _header(path, stream.read(_HEADER), path.name, path.stat().st_size)
    if not math.prod(shape):
        return np.zeros(shape, dtype)
    with reading(path, "an array"):
        return np.memmap(path, dtype, "r", start, shape, order)


def load_npz(path: Path, names: Mapping[str, Sequence[str]]) -> dict[str, NDArray[Any]]:
    """The arrays of a .npz by our name, by the aliases in ``names``.

    Raises:
        FileFormatError: no such archive, several arrays of one meaning, damaged or pickled ones.
    """
    with reading(path, "a .npz", "Write it again, with numpy.savez."):
        archive = ZipFile(path)
    with archive:
        members = [info.filename for info in archive.infolist()]
        arrays: dict[str, NDArray[Any]] = {}
        for ours, theirs in names.items():
            known = [member for member in members if member.removesuffix(".npy").lower() in theirs]
            if len(known) > 1:
                shown = [member.removesuffix(".npy") for member in known]
                raise FileFormatError(path, f"{shown} could all be the {ours}.", "Keep one of them.")
            for member in known:
                with reading(path, f"a .npz (array {member!r})", "Write it again, with numpy.savez."):
                    arrays[ours] = _member(path, archive, member)
    if "features" not in arrays:
        expected, held = (
            ", ".join(names["features"]),
            sorted(member.removesuffix(".npy") for member in members),
        )
        raise FileFormatError(path, f"expected an array called {expected}; it holds {held[:20]}.")
    return arrays


def load_text(path: Path, keyed: bool) -> dict[str, NDArray[Any]]:
    """``features`` and, unless the rows have none, ``keys`` of lines ``image f1 f2 ...``.

    Args:
        path: UTF-8 text; tabs, commas, semicolons or blanks separate. A header must number the features.
        keyed: the keys come from elsewhere, and a row may be features alone.

    Raises:
        FileFormatError: no such text, or with the line that does not fit.
    """
    separator, first, width = _form(path)
    names, values = list[str](), array("f")
    for number, line in iter_lines(path):
        if number < first:
            continue
        cells = split_cells(line, separator)
        if len(cells) != width:
            raise FileFormatError(
                path, f"line {number}: {len(cells)} cells, but {width} on line {first}.",
                "Names with blanks need tabs or commas.",
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
            path, "the first numbers of its lines could be names of images or features.",
            "Leave the keys away, or take the first column out.",
        )  # fmt: skip
    if whole and not keyed:
        return {"features": features, "keys": np.array(names)}
    return {"features": np.column_stack([np.array(names, np.float32), features])}


def describe_dump(path: Path) -> FileFormatError:
    """The refusal of a file that is no dump."""
    return FileFormatError(path, f"expected features, this is {describe_content(path)}.", _READ)


def _form(path: Path) -> tuple[str | None, int, int]:
    """(separator, number of the first line behind a header, number of cells)."""
    number, line = next(iter_lines(path), (0, ""))
    for separator in SEPARATORS:
        cells = split_cells(line, separator)
        if len(cells) < 3:
            continue
        if _is_header(cells):
            return separator, number + 1, len(cells)
        if all(map(is_number, cells[1:])):
            return separator, number, len(cells)
    raise describe_dump(path)


def _is_header(cells: Sequence[str]) -> bool:
    """Whether the cells behind the first one are numbered: f0, f1, ..., or 0, 1, ..."""
    matches = [re.fullmatch(r"(\D*[A-Za-z_ ]\D*|)(\d{1,9})", cell) for cell in cells[1:]]
    words = {match[1] for match in matches if match}
    numbers = [int(match[2]) for match in matches if match]
    in_order = numbers in ([*range(len(matches))], [*range(1, len(matches) + 1)])
    return len(words) == 1 and in_order and not is_number(cells[0]) and not has_image_suffix(cells[0])


def _member(path: Path, archive: ZipFile, member: str) -> NDArray[Any]:
    content = archive.read(member)
    shape, order, dtype, start = _header(path, content[:_HEADER], member, len(content))
    return np.frombuffer(content, dtype, offset=start).reshape(shape, order=order)


def _header(
    path: Path, head: bytes, name: str, size: int
) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any], int]:
    """Shape, order, dtype and offset of an array, checked against the bytes that there are."""
    width = 2 if head[6:7] == b"\1" else 4
    start = 8 + width + int.from_bytes(head[8 : 8 + width], "little")
    if head[:6] != b"\x93NUMPY" or start > len(head):  # NumPy's advice on long headers is to trust the file
        raise FileFormatError(path, f"{name}: not readable as a .npy: no header of its kind.", _READ)
    with reading(path, f"a .npy ({name})", "Write it again, with numpy.save."):
        header = io.BytesIO(head)
        version = np.lib.format.read_magic(header)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(header)
    if dtype.hasobject:
        raise FileFormatError(
            path, f"{name}: an array of Python objects is pickled, and pickles are not opened.",
            "Save names as strings: numpy.savez(..., names=numpy.array(names, dtype=str)).",
        )  # fmt: skip
    promised, there = math.prod(shape) * dtype.itemsize, size - start
    if promised != there or min(shape, default=0) < 0:
        raise FileFormatError(
            path, f"{name}: not readable as a .npy: {dtype} of shape {shape} takes {promised} bytes, {there} "
            "are there.", "It is truncated, or several arrays were saved into one file.",
        )  # fmt: skip
    return shape, "F" if fortran else "C", dtype, start


_NAMES = {
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
_BLOCK = 1 << 16


def read_features(
    path: str | Path,
    keys: Sequence[str] | None = None,
    *,
    halves: bool = False,
    flip: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Embeddings:
    """Read raw features dumped by other tools, and whatever they dump beside them.

    A ``.npy`` holds the features, (n, d) of any float type. A ``.npz`` holds them as one of ``embeddings``,
    ``features``, ``feats``, ``img_feats``, ..., and, where there are any, ``keys`` (or ``names``, ``paths``,
    ``image_names``, ...), ``labels``, ``norm``, ``detector_score`` (or ``faceness_scores``) and one
    concentration: ``log_kappa``, ``kappa``, or the Gaussian's ``sigma``, ``sigma_sq`` or ``log_sigma_sq``,
    where (n,) becomes kappa = 1 / sigma^2 and (n, d) the ``log_precision`` of probabilistic face embeddings.
    Without a concentration ``log_kappa`` is 0 for all and the provenance says ``"log_kappa": "constant"``.
    Labels are whole numbers or names; -1 and "" mean unknown.

    Text lines are ``image f1 f2 ...``, separated by tabs, commas, semicolons or blanks: ``feat.list`` of
    MagFace, and .csv, where a header may number the features (``image,f0,f1``). With ``keys`` the names may
    be missing.

    The length of a feature is kept as the extra ``norm`` unless the file gives norms. Rows that hold NaN or
    infinity, or nothing but zeros, become ``skipped``: failures to acquire.

    Args:
        path: the dump; nothing in it is unpickled.
        keys: (n,) key of each row; default: those in the file.
        halves: each row is (2 d,): the original's features, then the mirrored image's.
        flip: with ``halves``: "sum" adds both (and ``norm`` is half the length of the sum), "none" takes the
            original alone. Without: what was done before the dump, for the provenance; None says nothing.
        provenance: facts to add, e.g. ``{"alignment": "arcface112"}``.

    Raises:
        FileFormatError: damaged or truncated, pickled, without features or keys, of several lengths, keys or
            labels that are neither names nor whole numbers.
        InputError: an odd number of columns with ``halves``, keys of another number or twice, a kappa that is
            not positive and finite.

    Example:
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
        raise InputError("halves: say what to do with them, flip='sum' or flip='none'")
    features = arrays["features"]
    if halves and features.shape[1] % 2:
        raise InputError(f"{path}: rows of {features.shape[1]} features are no two halves")
    names = _keys(path, keys, arrays, len(features))
    mu, norm, reasons = _directions(features, flip if halves else None)
    good = np.flatnonzero([not reason for reason in reasons])
    labels, identities = _labels(path, arrays, good)
    extras = {"norm": norm[good]}
    for name in ("norm", "detector_score"):
        if name in arrays:
            extras[name] = _column(path, arrays, name, len(features))[good]
    log_kappa, log_precision, source = _confidence(
        path, arrays, good, features.shape[1] // (2 if halves else 1)
    )
    return Embeddings(
        mu[good],
        log_kappa,
        [names[row] for row in good.tolist()],
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
    """The arrays by our names; ``features`` is there and (n, d)."""
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
        arrays = load_npz(path, _NAMES)
    elif b"\0" in start:
        raise describe_dump(path)
    else:
        arrays = load_text(path, keyed)
    features = arrays["features"]
    if features.ndim != 2 or not len(features) or features.shape[1] < 2 or features.dtype.kind != "f":
        got = f"{features.dtype} of shape {features.shape}"
        raise FileFormatError(path, f"expected features (n, d) of a float type, got {got}.")
    given = [name for name in _CONCENTRATIONS if name in arrays]
    if len(given) > 1:
        raise FileFormatError(path, f"{given} are several concentrations.", "Keep one of them.")
    return arrays


def _keys(path: Path, keys: Sequence[str] | None, arrays: Mapping[str, NDArray[Any]], n: int) -> list[str]:
    if keys is None and "keys" not in arrays:
        raise FileFormatError(
            path,
            f"{n} rows without keys.",
            "Give the keys (a file with one per line), in the order of the rows.",
        )
    if keys is None:  # as everywhere here, slashes separate folders
        names = [word.replace("\\", "/") for word in _words(path, arrays, "keys", n)]
    else:
        names = list(keys)
    if len(names) != n:
        raise InputError(f"{path}: {n} rows of features, {len(names)} keys; expected one key per row")
    return names


def _directions(
    features: NDArray[Any], flip: str | None
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " n"], list[str]]:
    """(unit directions, lengths, reasons why a row has none), block by block."""
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
        arrays = {**arrays, "labels": column.astype(np.int64)}  # whole numbers, as im2rec and MXNet keep them
    words = list(map(composed, _words(path, arrays, "labels", len(arrays["features"]))))
    known = [words[row] for row in good.tolist()]
    identities = identity_order({*known} - {"-1", ""})
    index = {name: label for label, name in enumerate(identities)}
    return np.array([index.get(name, -1) for name in known], np.int64), identities


def _confidence(
    path: Path, arrays: Mapping[str, NDArray[Any]], good: NDArray[Any], dim: int
) -> tuple[NDArray[Any], NDArray[Any] | None, str]:
    """(log_kappa, log_precision or None, where it comes from)."""
    n = len(arrays["features"])
    for name in _CONCENTRATIONS:
        if name not in arrays:
            continue
        wide = name not in ("log_kappa", "kappa") and arrays[name].shape == (n, dim)
        column = np.asarray(arrays[name] if wide else _column(path, arrays, name, n), np.float64)[good]
        if not name.startswith("log_"):
            bad = np.flatnonzero(~((column > 0) & np.isfinite(column)).reshape(len(column), -1).all(1))
            if bad.size:
                raise InputError(
                    f"{path}: {name}: {bad.size} of {len(column)} values are not positive and finite, first "
                    f"in row {good[bad[0]]} (is this the logarithm of {name}? Then name it so)"
                )
            column = np.log(column)
        column *= {"log_kappa": 1, "kappa": 1, "sigma": -2, "sigma_sq": -1, "log_sigma_sq": -1}[name]
        if wide:
            return np.log(np.exp(column).mean(1)), column, f"mean of 1 / variance, from {name}"
        return column, None, f"{'' if 'kappa' in name else '1 / variance, '}from {name}"
    return np.zeros(len(good)), None, "constant"


def _words(path: Path, arrays: Mapping[str, NDArray[Any]], name: str, n: int) -> list[str]:
    column = arrays[name]
    if column.shape not in ((n,), (n, 1)) or column.dtype.kind not in "iuUS":
        got = f"{column.dtype} of shape {column.shape}"
        raise FileFormatError(
            path, f"{name}: expected {n} names or whole numbers, one per row of features, got {got}."
        )
    with reading(path, f"UTF-8 text, the {name}"):  # any bytes may stand in an array of strings
        decoded = np.char.decode(column, "utf-8") if column.dtype.kind == "S" else column
        words = [str(word) for word in decoded.reshape(n).tolist()]
        "".join(words).encode()
    return words


def _column(path: Path, arrays: Mapping[str, NDArray[Any]], name: str, n: int) -> NDArray[Any]:
    column = arrays[name]
    if column.shape not in ((n,), (n, 1)) or column.dtype.kind not in "fiu":
        got = f"{column.dtype} of shape {column.shape}"
        raise FileFormatError(path, f"{name}: expected {n} numbers, one per row of features, got {got}.")
    return column.reshape(n)
