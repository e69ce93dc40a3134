"""Open image sets and pair lists of any supported format, and generate synthetic images."""

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int64, UInt8

from spherecf.common.files import describe_content
from spherecf.common.progress import in_order, progress
from spherecf.data.folder import IdentityFolder
from spherecf.data.image import IMAGE_SUFFIXES, ImageError, decode_image, encode_image
from spherecf.data.list import ListFile
from spherecf.data.pair_table import is_pair_table, read_cfp_pairs, read_pair_table
from spherecf.data.pairbin import PairBin
from spherecf.data.pairs import PairList, read_lfw_pairs
from spherecf.data.records import RecordFile
from spherecf.data.source import ImageSource, Skipped
from spherecf.data.text import UTF16, Keys, iter_lines
from spherecf.errors import FileFormatError, InputError

SYNTHETIC = "synthetic:"
_GRID = 7  # colour patches per side of a pattern
_DEFAULTS = {"images": 0, "identities": 0, "size": 112, "seed": 0}


class SyntheticImages(ImageSource):
    """Deterministic synthetic images: a smooth coloured pattern per identity, plus noise per image.

    Image i shows identity ``i % identities``, so the numbers of images per identity differ by at most one. An
    image depends only on seed, identity and its index. Memory grows by 8 bytes per image, for the labels.
    The images are not faces; they serve to test speed, scale and installation.

    Args:
        images: number of images.
        identities: number of identities.
        size: (height, width).
        seed: each seed gives different images.
        encoded: encoding used by `read`. With ``".png"``, which is lossless, `image` returns the pixels
            without decoding; with ``".jpg"`` it decodes the result of `read`, as for images on disk.

    Raises:
        InputError: fewer than one image, identity or pixel, a negative seed, or an unknown encoding.

    Example:
        >>> source = SyntheticImages(1_000_000, 85_742)
        >>> source.keys[85_743], int(source.labels[85_743]), source.image(85_743).shape
        ('1/85743', 1, (112, 112, 3))
    """

    def __init__(
        self,
        images: int,
        identities: int,
        size: tuple[int, int] = (112, 112),
        seed: int = 0,
        encoded: str = ".png",
    ) -> None:
        if min(images, identities, *size) < 1 or seed < 0:
            raise InputError(
                "synthetic images: expected at least 1 image, 1 identity, 1 pixel and a seed >= 0, got "
                f"{images} images, {identities} identities, size {size}, seed {seed}"
            )
        if encoded not in (".png", ".jpg"):
            raise InputError(f"synthetic images: encoded must be .png or .jpg, got {encoded!r}")
        self.size, self.seed, self.encoded = size, seed, encoded
        labels = np.arange(images, dtype=np.int64)
        labels %= identities
        super().__init__(f"synthetic-{images}-{seed}", labels, list(map(str, range(identities))))
        self._keys = _NumberedKeys(labels)
        # All images share one canvas of noise; each uses a different window of it.
        canvas = np.random.default_rng(seed).integers(0, 48, (2 * size[0], 2 * size[1], 3), np.uint8)
        self._noise: UInt8[np.ndarray, "height width 3"] = canvas

    @classmethod
    def parse(cls, text: str) -> "SyntheticImages":
        """From the form used on the command line, ``synthetic:images=N,identities=M[,size=112][,seed=0]``.

        Raises:
            InputError: an unknown or repeated setting, a value that is not a number, or a missing one.
        """
        settings = [setting.partition("=") for setting in text.removeprefix(SYNTHETIC).split(",")]
        values = {name.strip(): value.strip() for name, _, value in settings}
        invalid = [name for name, value in values.items() if name not in _DEFAULTS or not value.isdecimal()]
        if invalid or len(values) < len(settings) or not {"images", "identities"} <= values.keys():
            raise InputError(
                f"{text}: expected {SYNTHETIC}images=N,identities=M, optionally with ,size=PIXELS and ,seed=N"
            )
        numbers = _DEFAULTS | {name: int(value) for name, value in values.items()}
        side = numbers["size"]
        return cls(numbers["images"], numbers["identities"], (side, side), numbers["seed"])

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    def read(self, index: int) -> bytes:
        return encode_image(self._pixels(index), self.encoded)

    def image(self, index: int, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
        if self.encoded == ".jpg":
            return decode_image(self.read(index), self.where(index), size)
        if size not in (None, self.size):
            raise ImageError(self.where(index), f"expected an image of {size}, these are {self.size}.")
        return self._pixels(index)

    def sizes(self) -> Int64[np.ndarray, " n"]:
        """Upper bound on the bytes of an image: the exact size is known only once it has been encoded."""
        height, width = self.size
        return np.broadcast_to(np.int64(4 * height * width + 8 * height + 1024), len(self))

    def _pixels(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        height, width = self.size
        label = int(self.labels[index])
        patches = (_splitmix64(self.seed, label, 3 * _GRID**2) >> np.uint64(56)).astype(np.uint8) // 5 * 4
        pattern = cv2.resize(patches.reshape(_GRID, _GRID, 3), (width, height))
        top, left = (_splitmix64(self.seed + 1, index, 2) % np.array([height, width], np.uint64)).tolist()
        noise = self._noise[top : top + height, left : left + width]
        return np.asarray(cv2.add(pattern, noise), np.uint8)


class _NumberedKeys(Keys):
    """Keys ``identity/image``, both numbers."""

    def __init__(self, labels: Int64[np.ndarray, " n"]) -> None:
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def _get(self, row: int) -> str:
        return f"{self._labels[row]}/{row}"


def _splitmix64(seed: int, number: int, count: int) -> np.ndarray:
    """``count`` random 64-bit numbers by SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), without state."""
    start = (seed * 0xD1B54A32D192ED03 + number * 0x8CB92BA72F3D8DD7) % 2**64
    state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    numbers: np.ndarray = state ^ (state >> np.uint64(31))
    return numbers


_LAYOUTS = (
    "Supported: a folder with train.rec and train.idx, a .rec file, a pair .bin, a folder with one "
    "sub-folder of images per identity, a text file of lines `image_path label`, a .lst, "
    "synthetic:images=N,identities=M."
)


def open_source(path: str | Path, root: str | Path | None = None) -> ImageSource:
    """Open a data set in any supported layout.

    Args:
        path: a folder or file, or ``synthetic:images=N,identities=M`` for `SyntheticImages`.
        root: folder that the paths of a list file start from, by default that of the list; unused by other
            layouts.

    Raises:
        FileFormatError: the layout is not supported (the message lists those that are), or a file is damaged.

    Example:
        >>> from spherecf.data import orl_faces
        >>> open_source(orl_faces().root)
        IdentityFolder('ORL_faces', images=401, identities=40)
    """
    if str(path).startswith(SYNTHETIC):
        return SyntheticImages.parse(str(path))
    path = Path(path)
    if not os.path.exists(path):  # noqa: PTH110, pathlib raises if the name is too long
        raise FileFormatError(path, "no such file or folder.", _LAYOUTS)
    if path.is_dir():
        return RecordFile(path) if (path / "train.rec").exists() else _open_folder(path)
    if path.suffix == ".rec":
        return RecordFile(path)
    if path.suffix in (".bin", ".pkl", ".pickle"):
        return PairBin(path)
    if path.suffix.lower() in IMAGE_SUFFIXES or not _is_text(path):
        raise FileFormatError(path, f"expected a data set, but this is {describe_content(path)}.", _LAYOUTS)
    if _pair_kind(path) or is_pair_table(path):
        raise FileFormatError(
            path,
            "expected a data set of images, but this is a list of pairs.",
            "Pass the images here, and this file as the pairs.",
        )
    return ListFile(path, root)


def open_pairs(path: str | Path) -> PairList:
    """Open a pair list: LFW's ``pairs.txt``, a table ``fold left right mated`` (CFP), other lines
    ``left right 0|1`` (see `read_pair_table`), or the pairs of a ``.bin``.

    Raises:
        FileFormatError: the file is in none of these formats, or contains a mistake (with its line number).

    Example:
        >>> from pathlib import Path
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "pairs.txt"
        >>> _ = path.write_text("1\\t1\\nAnn_Lee\\t1\\t2\\nAnn_Lee\\t1\\tBo_Ray\\t3\\n")
        >>> open_pairs(path).right
        ['Ann_Lee/Ann_Lee_0002.jpg', 'Bo_Ray/Bo_Ray_0003.jpg']
    """
    path = Path(path)
    if path.suffix in (".bin", ".pkl", ".pickle"):
        return PairBin(path).pairs
    return _PAIR_READERS[_pair_kind(path) or "table"](path)


_PAIR_READERS = {"lfw": read_lfw_pairs, "cfp": read_cfp_pairs, "table": read_pair_table}


def _open_folder(path: Path) -> IdentityFolder:
    try:
        return IdentityFolder(path)
    except FileFormatError as error:
        raise FileFormatError(path, error.problem, _LAYOUTS) from error


def _is_text(path: Path) -> bool:
    with path.open("rb") as stream:
        start = stream.read(4096)
    return b"\0" not in start or start.startswith(UTF16)  # the reader reports UTF-16 by name


def _pair_kind(path: Path) -> str:
    """``lfw`` or ``cfp``, by the first line; empty for anything else."""
    fields = next((line.split() for _, line in iter_lines(path)), [])
    if fields[:2] == ["fold", "left"] and len(fields) == 4:
        return "cfp"
    return "lfw" if fields and len(fields) <= 2 and all(map(str.isdecimal, fields)) else ""


_SAMPLE = 64  # images decoded unless all are
_CHUNK = 64  # images per task of a decoding thread
_EDGES = (1, 2, 3, 5, 10, 20, 50, 100)  # lower edges of the histogram of images per identity


def describe(source: ImageSource, decode: bool = False, workers: int | None = None) -> dict[str, Any]:
    """A summary of a source, ready for JSON.

    Args:
        source: any source.
        decode: decode every image; by default only a sample of 64, evenly spaced.
        workers: decoding threads.

    Returns:
        ``kind``, ``name``, ``images``, ``identities`` (with at least one image), ``without_identity`` (number
        of images), ``images_per_identity`` (least, median, mean, most, and a ``histogram`` of identities by
        number of images), ``bytes``, ``decoded`` (number of images decoded), ``picture_sizes`` (number of
        decoded images by height x width), ``broken`` (key and reason of images that could not be decoded),
        ``missing`` (keys of images that could not be found), ``ignored`` (files that are not images),
        ``notes`` (adjustments made in reading), ``fingerprint``, and for a pair file ``pairs``.

    Example:
        >>> from spherecf.data import orl_faces
        >>> facts = describe(orl_faces())
        >>> facts["images"], facts["identities"], facts["picture_sizes"]
        (400, 40, {'112x92': 64})
    """
    count, stored = len(source), source.sizes()
    chosen = np.unique(np.linspace(0, count - 1, count if decode else min(count, _SAMPLE)).astype(int))
    sizes, broken = _decode(source, chosen, workers)
    labels = source.labels[source.labels >= 0]
    facts: dict[str, Any] = {
        "kind": type(source).__name__,
        "name": source.name,
        "images": count,
        "identities": len(np.unique(labels)),
        "without_identity": count - len(labels),
        "images_per_identity": _per_identity(np.bincount(labels)) if len(labels) else None,
        "bytes": int(stored.clip(0).sum()),
        "decoded": len(chosen),
        "picture_sizes": {f"{height}x{width}": number for (height, width), number in sizes.most_common()},
        "broken": [item._asdict() for item in broken],
        "missing": [source.keys[row] for row in np.flatnonzero(stored < 0).tolist()],
        "ignored": source.ignored,
        "notes": source.notes,
        "fingerprint": source.fingerprint(),
    }
    if isinstance(source, PairBin):
        pairs = source.pairs
        facts["pairs"] = {"pairs": len(pairs), "mated": int(pairs.mated.sum()), "folds": pairs.folds}
    return facts


def _decode(
    source: ImageSource, rows: np.ndarray, workers: int | None
) -> tuple[Counter[tuple[int, ...]], list[Skipped]]:
    sizes: Counter[tuple[int, ...]] = Counter()
    broken: list[Skipped] = []

    def decode_chunk(chunk: list[int]) -> list[tuple[int, ...] | Skipped]:
        outcomes: list[tuple[int, ...] | Skipped] = []
        for row in chunk:
            try:
                outcomes.append(source.image(row).shape[:2])
            except FileFormatError as error:
                outcomes.append(Skipped(source.keys[row], str(error)))
        return outcomes

    chunks = (rows[start : start + _CHUNK].tolist() for start in range(0, len(rows), _CHUNK))
    results = in_order(decode_chunk, chunks, workers or os.cpu_count() or 1, "decode")
    with progress("decoding", len(rows)) as advance, closing(results):
        for outcomes in results:
            broken += [item for item in outcomes if isinstance(item, Skipped)]
            sizes.update(item for item in outcomes if not isinstance(item, Skipped))
            advance(len(outcomes), f"{len(broken)} broken" if broken else None)
    return sizes, broken


def _per_identity(counts: np.ndarray) -> dict[str, Any]:
    counts = counts[counts > 0]
    names = [str(low) if high == low + 1 else f"{low}-{high - 1}" for low, high in pairwise(_EDGES)]
    histogram = np.histogram(counts, (*_EDGES, np.inf))[0].tolist()
    return {
        "least": int(counts.min()),
        "median": float(np.median(counts)),
        "mean": round(float(counts.mean()), 3),
        "most": int(counts.max()),
        "histogram": dict(zip((*names, f"{_EDGES[-1]}+"), histogram)),
    }
