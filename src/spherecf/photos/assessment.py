"""Photos to confidences: every face with its direction, its kappa and the reasons beside it; ranked."""

import hashlib
import json
import math
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.common.progress import in_order, isolate_failures
from spherecf.errors import InputError, ModelError
from spherecf.faces import (
    MAX_PIXELS,
    Acquisition,
    CapturedFace,
    CaptureFacts,
    FaceDetector,
    FacePoints,
    Failure,
    acquire,
)
from spherecf.models import ConfidenceModel, load
from spherecf.photos.files import Journal, Key, PhotoFile, find_photos
from spherecf.vmf import mean_resultant_length

# Set from real faces: 150 of LFW, 80 frontal and 80 profile ones of CFP, 40 of those blurred by a Gaussian.
SMALL_EYES_PX = 24.0
"""The crop has its eyes 35 px apart: below two thirds of that it is mostly invented by enlarging."""
TURNED_DEGREES = 35.0
"""1 in 100 of LFW are turned by more than 31 degrees, 95 in 100 CFP profiles by more than 42."""
TILTED_DEGREES = 25.0
"""Of LFW's absolute pitch the 99th percentile is 22."""
UPSIDE_DOWN_DEGREES = 120.0
"""Of roll; detectors that know such faces give landmarks by which they are aligned all the same."""
BLURRED_SHARPNESS = 30.0
"""1 in 100 of LFW lie below 29; a blur of 2 px in the crop has the median 39, of 3 px 20."""
DARK_LEVEL, BRIGHT_LEVEL = 50.0, 200.0
"""Mean grey level: 1 in 100 of those 310 faces has less than 52, 1 in 100 more than 192."""
FLAT_CONTRAST = 18.0
"""Standard deviation of grey levels: 1 in 100 of LFW lie below 22."""
CUT_SHARE = 0.8
"""Share of the face's box in the picture; a whole face at the very edge of its crop still has 0.85."""


def explain(facts: CaptureFacts) -> tuple[str, ...]:
    """What may trouble a recogniser in a face, the gravest first; empty where nothing is conspicuous.

    Example:
        >>> explain(CaptureFacts(12.8, 52.0, 3.0, 1.0, 400.0, 120.0, 45.0, 1.0, (30, 40)))
        ('eyes 13 px apart', 'turned 52 degrees')
    """
    foreshortened = max(0.4, math.cos(math.radians(facts.yaw_degrees)))  # near, not small; 0.4 of NaN
    found = {
        "upside down": abs(facts.roll_degrees) > UPSIDE_DOWN_DEGREES,
        f"eyes {facts.eye_distance_px:.0f} px apart": facts.eye_distance_px < SMALL_EYES_PX * foreshortened,
        f"turned {abs(facts.yaw_degrees):.0f} degrees": abs(facts.yaw_degrees) > TURNED_DEGREES,
        f"looking {'down' if facts.pitch_degrees > 0 else 'up'}": abs(facts.pitch_degrees) > TILTED_DEGREES,
        "blurred": facts.sharpness < BLURRED_SHARPNESS,
        "dark": facts.brightness < DARK_LEVEL,
        "overexposed": facts.brightness > BRIGHT_LEVEL,
        "little contrast": facts.contrast < FLAT_CONTRAST,
        "cut off by the picture's edge": facts.inside < CUT_SHARE,
    }
    return tuple(reason for reason, true in found.items() if true)


PhotoSource = str | Path | bytes | NDArray[np.uint8]
"""A path, the bytes of a file, or RGB pixels (height, width, 3)."""

_MOST_READERS = 8


@dataclass(frozen=True, eq=False)
class AssessedFace:
    """One face and how sure the recogniser is of it.

    Attributes:
        captured: crop, box, landmarks and facts.
        mu: (dim,) unit direction; zeros where the recogniser gave none.
        kappa: concentration; NaN where the recogniser gave none.
        percentile: share of the reference faces that are less sure, 0 .. 100; None without a calibration.
        quality: the percentile as ISO/IEC 29794-1 integer, 0 .. 100; -1 is a failure to assess, or no scale.
        expected_cosine: A_d(kappa), the expected cosine to the person's prototype.
        reasons: what is conspicuous about the picture; they explain kappa, and do not enter it.
    """

    captured: CapturedFace
    mu: NDArray[np.float32]
    kappa: float
    percentile: float | None
    quality: int
    expected_cosine: float
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without direction and pixels."""
        return {
            "quality": self.quality,
            "percentile": None if self.percentile is None else round(self.percentile, 1),
            "kappa": _number(self.kappa, 2),
            "expected_cosine": _number(self.expected_cosine, 4),
            "reasons": list(self.reasons),
            "box": [round(side, 1) for side in self.captured.box],
            "landmarks": [[round(float(x), 2), round(float(y), 2)] for x, y in self.captured.landmarks],
            "detector_score": round(self.captured.detector_score, 3),
            "facts": self.captured.facts.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class AssessedPhoto:
    """One photo and its faces, the main one first; without faces, the reason."""

    name: str
    acquisition: Acquisition
    faces: tuple[AssessedFace, ...]

    @property
    def main(self) -> AssessedFace | None:
        """The main face: largest box times detector score."""
        return self.faces[0] if self.faces else None

    @property
    def failure(self) -> Failure | None:
        """Why there is no face, in one word."""
        return self.acquisition.failure

    @property
    def reason(self) -> str:
        """The same as a sentence; "" where there is a face."""
        return self.acquisition.reason

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; faces as in `AssessedFace.to_dict`."""
        size = self.acquisition.size
        return {
            "photo": self.name,
            "size_px": None if size is None else list(size),
            "failure": None if self.failure is None else str(self.failure),
            "reason": self.reason,
            "notes": list(self.acquisition.notes),
            "faces": [face.to_dict() for face in self.faces],
        }


class FaceAssessor:
    """Photos in, faces with their confidence out: detector, recogniser and head behind one call.

    Args:
        model: by default the calibrated model that ships with the package.
        detector: by default `FaceDetector` as it comes; or anything that maps RGB pixels to `Face` records.
        faces: "all" of a photo, or only the "main" one.
        max_pixels: larger pictures are refused before they are decoded.

    Raises:
        InputError: another word for ``faces``, or a recogniser whose input is not square.

    Example:
        >>> from spherecf.data import orl_faces
        >>> assess = FaceAssessor()
        >>> photo = assess(orl_faces().image(0), "somebody")
        >>> photo.name, len(photo.faces), photo.main.mu.shape, photo.main.kappa > 0
        ('somebody', 1, (128,), True)
        >>> assess("no/such.jpg").failure
        <Failure.UNREADABLE: 'unreadable'>
    """

    def __init__(
        self,
        model: ConfidenceModel | None = None,
        detector: FacePoints | None = None,
        *,
        faces: Literal["main", "all"] = "all",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if faces not in ("main", "all"):
            raise InputError(f"faces: expected 'main' or 'all', got {faces!r}")
        self.model = load() if model is None else model
        self.detector: FacePoints = FaceDetector() if detector is None else detector
        self.which, self.max_pixels = faces, max_pixels
        height, width = self.model.backbone.preprocessing.size
        if height != width:
            raise InputError(f"photos give square crops, this recogniser takes {height}x{width}")
        self.size = height

    def __call__(self, photo: PhotoSource, name: str = "") -> AssessedPhoto:
        """Assess one photo. A bad photo does not raise: its ``failure`` and ``reason`` say what is wrong."""
        return self._assess([self._acquire((name, photo))])[0]

    def stream(
        self,
        photos: Iterable[tuple[str, PhotoSource]],
        *,
        batch_size: int = 32,
        threads: int | None = None,
    ) -> Generator[AssessedPhoto, None, None]:
        """Assess (name, photo) pairs, in order: threads decode and detect, the recogniser works in batches.

        Args:
            photos: an empty name stands for the path.
            batch_size: faces per call of the recogniser.
            threads: by default one per core, at most 8.

        Raises:
            InputError: a batch or thread count below 1.
        """
        threads = min(os.cpu_count() or 1, _MOST_READERS) if threads is None else threads
        if batch_size < 1 or threads < 1:
            raise InputError(f"expected at least one, got batch_size {batch_size} and threads {threads}")
        waiting: list[Acquisition] = []
        with closing(in_order(self._acquire, photos, threads, "photo")) as acquired:
            for acquisition in acquired:
                waiting.append(acquisition)
                if sum(len(one.faces) for one in waiting) >= batch_size or len(waiting) >= 2 * batch_size:
                    yield from self._assess(waiting)
                    waiting = []
        yield from self._assess(waiting)

    def _acquire(self, photo: tuple[str, PhotoSource]) -> Acquisition:
        name, source = photo
        return acquire(source, self.detector, name=name, size=self.size, max_pixels=self.max_pixels)

    def _assess(self, acquired: Sequence[Acquisition]) -> list[AssessedPhoto]:
        captured = [one.faces[:1] if self.which == "main" else one.faces for one in acquired]
        assessed = iter(self._judge([face for faces in captured for face in faces]))
        return [
            AssessedPhoto(one.name, one, tuple(next(assessed) for _ in faces))
            for one, faces in zip(acquired, captured)
        ]

    def _judge(self, faces: Sequence[CapturedFace]) -> list[AssessedFace]:
        if not faces:
            return []
        mu, kappa = self._embed(np.stack([face.crop for face in faces]))
        dim = self.model.backbone.dim
        cosine = mean_resultant_length(torch.from_numpy(kappa), dim).tolist()
        scale = None if self.model.calibration is None else self.model.calibration.kappa
        percentile = None if scale is None else scale.percentile(kappa).tolist()
        quality = [-1] * len(faces) if scale is None else scale.iso(kappa).tolist()
        return [
            AssessedFace(
                face,
                mu[row],
                float(kappa[row]),
                None if percentile is None or math.isnan(percentile[row]) else percentile[row],
                quality[row],
                cosine[row],
                explain(face.facts),
            )
            for row, face in enumerate(faces)
        ]

    def _embed(self, crops: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """(n, dim) and (n,); zeros and NaN for a crop that the recogniser gives no direction."""
        mu = np.zeros((len(crops), self.model.backbone.dim), np.float32)
        kappa = np.full(len(crops), np.nan)
        for which, result in isolate_failures(self.model.embed, crops, ModelError):
            if not isinstance(result, Exception):
                mu[which] = result[0].cpu().float().numpy()
                kappa[which] = result[1].double().exp().cpu().numpy()
        return mu, kappa


def _number(value: float, digits: int) -> float | None:
    return None if math.isnan(value) else round(value, digits)


Record = dict[str, Any]

_MAY_PASS = (
    Failure.UNREADABLE,
    Failure.UNSUPPORTED,
)  # another right or another package cures them: ask again


def rank_photos(
    paths: Sequence[str | Path], assessor: FaceAssessor | None = None, *, resume: str | Path | None = None
) -> list[Record]:
    """Assess all photos that paths and folders name; one row per face, the surest first, failures last.

    Args:
        paths: files and folders, folders with all below them.
        assessor: by default `FaceAssessor` as it comes.
        resume: a file that keeps what is assessed, so that an interrupted call goes on where it stopped.

    Returns:
        Rows as `ranked_faces` makes them.

    Raises:
        StorageError: ``resume`` cannot be written; what is in it is kept.

    Example:
        >>> from spherecf.data import orl_faces
        >>> rows = rank_photos([orl_faces().root / "s1"])
        >>> len(rows), rows[0]["rank"], rows[0]["kappa"] >= rows[-1]["kappa"]
        (10, 1, True)
    """
    assessor = assessor or FaceAssessor()
    return ranked_faces(assess_files(find_photos(paths).photos, assessor, resume=resume))


def assess_files(
    photos: Iterable[PhotoFile], assessor: FaceAssessor, *, resume: str | Path | None = None
) -> Iterator[Record]:
    """`AssessedPhoto.to_dict` of every file, in order, those that ``resume`` holds from there.

    Photos that could not be read, or need another package, are not kept there: asked again, they may do.

    Raises:
        FileFormatError: ``resume`` is some other file.
        StorageError: it cannot be written; what is in it is kept.

    Example:
        >>> from spherecf.data import orl_faces
        >>> photos = find_photos([orl_faces().root / "s1" / "1.pgm"]).photos
        >>> [len(photo["faces"]) for photo in assess_files(photos, FaceAssessor())]
        [1]
    """
    with nullcontext() if resume is None else Journal(resume, maker(assessor)) as journal:
        waiting: list[tuple[PhotoFile, Key]] = []  # in order: an answer from the journal waits its turn

        def fresh() -> Iterator[tuple[str, Path]]:
            for photo in photos:
                key = _key(photo.path)
                waiting.append((photo, key))
                if journal is None or journal.find(key) is None:
                    yield photo.name, photo.path

        def known() -> Iterator[Record]:
            while journal is not None and waiting:
                found = journal.find(waiting[0][1])
                if found is None:
                    return
                yield {**found, "photo": waiting.pop(0)[0].name}

        with closing(assessor.stream(fresh())) as stream:
            for assessed in stream:
                yield from known()
                (photo, key), record = waiting.pop(0), assessed.to_dict()
                if journal is not None and assessed.failure not in _MAY_PASS:
                    journal.add(photo, record, key)
                yield record
        yield from known()


def maker(assessor: FaceAssessor) -> str:
    """Names everything an assessment depends on: model, calibration, detector and settings."""
    calibration = assessor.model.calibration
    detector = getattr(assessor.detector, "sha256", repr(assessor.detector))
    facts = [
        assessor.model.fingerprint(),
        assessor.model.backbone.engine,
        None if calibration is None else calibration.to_dict(),
        [detector, getattr(assessor.detector, "min_score", None)],
        [assessor.which, assessor.max_pixels, "spherecf.photos/2"],
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def ranked_faces(photos: Iterable[Record]) -> list[Record]:
    """One row per face, by descending kappa, and after them one per photo without a face.

    ``rank`` counts from 1, equal kappas by name; it is None where there is no kappa, and ``quality`` -1.

    Args:
        photos: of `AssessedPhoto.to_dict`.

    Example:
        >>> facts = {"size_px": None, "notes": [], "failure": None, "reason": ""}
        >>> faces = [{"kappa": 90.0, "quality": 10}, {"kappa": 300.0, "quality": 80}]
        >>> rows = ranked_faces([{"photo": "a.jpg", "faces": faces, **facts}])
        >>> [(row["rank"], row["face"], row["kappa"]) for row in rows]
        [(1, 1, 300.0), (2, 0, 90.0)]
    """
    rows = [row for photo in photos for row in _rows(photo)]
    rows.sort(key=lambda row: (row["kappa"] is None, -(row["kappa"] or 0.0), row["photo"], row["face"] or 0))
    for rank, row in enumerate(rows, 1):
        row["rank"] = None if row["kappa"] is None else rank
    return rows


def _rows(photo: Record) -> Iterator[Record]:
    start = {"rank": None, "photo": photo["photo"]}
    end = {"size_px": photo["size_px"], "notes": photo["notes"], "failure": photo["failure"]}
    for place, face in enumerate(photo["faces"]):
        yield {**start, "face": place, **face, **end, "reason": ""}
    if not photo["faces"]:
        yield {**start, "face": None, "quality": -1, "kappa": None, **end, "reason": photo["reason"]}


def _key(path: Path) -> Key:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return str(path), -1, -1
    return os.path.abspath(path), found.st_size, found.st_mtime_ns  # noqa: PTH100
