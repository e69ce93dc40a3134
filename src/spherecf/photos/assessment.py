"""Assess photos: the direction, kappa and capture problems of every face; rank faces by kappa."""

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
"""In the aligned crop the eyes are 35 px apart; below two thirds of that the crop is mostly interpolated."""
TURNED_DEGREES = 35.0
"""1 % of LFW are turned by more than 31 degrees, 95 % of the CFP profiles by more than 42."""
TILTED_DEGREES = 25.0
"""The 99th percentile of the absolute pitch in LFW is 22."""
UPSIDE_DOWN_DEGREES = 120.0
"""Absolute roll. Such faces are still aligned if the detector finds their landmarks."""
BLURRED_SHARPNESS = 30.0
"""1 % of LFW are below 29; the median is 39 after a blur of 2 px in the crop, 20 after 3 px."""
DARK_LEVEL, BRIGHT_LEVEL = 50.0, 200.0
"""Mean grey level: 1 % of those 310 faces are below 52, 1 % above 192."""
FLAT_CONTRAST = 18.0
"""Standard deviation of the grey levels: 1 % of LFW are below 22."""
CUT_SHARE = 0.8
"""Share of the face box inside the picture; a whole face at the edge of its crop still has 0.85."""


def explain(facts: CaptureFacts) -> tuple[str, ...]:
    """Capture problems that may lower recognition accuracy, most serious first; empty if there are none.

    Example:
        >>> explain(CaptureFacts(12.8, 52.0, 3.0, 1.0, 400.0, 120.0, 45.0, 1.0, (30, 40)))
        ('eyes 13 px apart', 'turned 52 degrees')
    """
    # Turning moves the eyes closer together; that alone does not make a face small. NaN gives 0.4.
    foreshortening = max(0.4, math.cos(math.radians(facts.yaw_degrees)))
    problems = {
        "upside down": abs(facts.roll_degrees) > UPSIDE_DOWN_DEGREES,
        f"eyes {facts.eye_distance_px:.0f} px apart": facts.eye_distance_px < SMALL_EYES_PX * foreshortening,
        f"turned {abs(facts.yaw_degrees):.0f} degrees": abs(facts.yaw_degrees) > TURNED_DEGREES,
        f"looking {'down' if facts.pitch_degrees > 0 else 'up'}": abs(facts.pitch_degrees) > TILTED_DEGREES,
        "blurred": facts.sharpness < BLURRED_SHARPNESS,
        "dark": facts.brightness < DARK_LEVEL,
        "overexposed": facts.brightness > BRIGHT_LEVEL,
        "little contrast": facts.contrast < FLAT_CONTRAST,
        "cut off by the picture's edge": facts.inside < CUT_SHARE,
    }
    return tuple(problem for problem, present in problems.items() if present)


PhotoSource = str | Path | bytes | NDArray[np.uint8]
"""A path, the bytes of a file, or RGB pixels (height, width, 3)."""

_MAX_READERS = 8

NO_DIRECTION = "the recogniser gives no direction for this face"


@dataclass(frozen=True, eq=False)
class AssessedFace:
    """One face and the recogniser's confidence in it.

    Attributes:
        captured: crop, box, landmarks and facts.
        mu: (dim,) unit direction; zeros if the recogniser gives none.
        kappa: concentration; NaN if the recogniser gives no direction.
        percentile: percentage of reference faces with a lower kappa, 0 .. 100; None without a calibration.
        quality: the percentile as an ISO/IEC 29794-1 integer, 0 .. 100; -1 if it could not be computed.
        expected_cosine: A_d(kappa), the expected cosine to the person's prototype.
        reasons: capture problems; they help to explain kappa and do not influence it.
    """

    captured: CapturedFace
    mu: NDArray[np.float32]
    kappa: float
    percentile: float | None
    quality: int
    expected_cosine: float
    reasons: tuple[str, ...]

    @property
    def picture(self) -> str:
        """SHA-256 of the crop's pixels: equal for copies of one picture."""
        return hashlib.sha256(self.captured.crop.tobytes()).hexdigest()

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
    """One photo and its faces, the main one first; if there are none, the reason."""

    name: str
    acquisition: Acquisition
    faces: tuple[AssessedFace, ...]

    @property
    def main(self) -> AssessedFace | None:
        """The main face: largest box times detector score."""
        return self.faces[0] if self.faces else None

    @property
    def usable_face(self) -> AssessedFace | None:
        """The main face if the recogniser gives it a direction."""
        return self.main if self.main is not None and math.isfinite(self.main.kappa) else None

    @property
    def problem(self) -> str:
        """Why there is no usable face, as a sentence; "" if there is one."""
        return "" if self.usable_face is not None else self.reason or NO_DIRECTION

    @property
    def failure(self) -> Failure | None:
        """Why there is no face, as a code; None if there is one."""
        return self.acquisition.failure

    @property
    def reason(self) -> str:
        """Why there is no face, as a sentence; "" if there is one."""
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
    """Detector, recogniser and confidence head in one call: photos in, faces with their confidence out.

    Args:
        model: by default the calibrated model that ships with the package.
        detector: by default `FaceDetector()`; or any callable that maps RGB pixels to `Face` records.
        faces: "all" faces of a photo, or only the "main" one.
        max_pixels: larger pictures are rejected before they are decoded.

    Raises:
        InputError: ``faces`` is neither "all" nor "main", or the recogniser's input is not square.

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
            raise InputError(f"expected a recogniser with square input, got {height}x{width}")
        self.size = height

    def __call__(self, photo: PhotoSource, name: str = "") -> AssessedPhoto:
        """Assess one photo. An unusable photo raises nothing: see its ``failure`` and ``reason``."""
        return self._assess([self._acquire((name, photo))])[0]

    def stream(
        self,
        photos: Iterable[tuple[str, PhotoSource]],
        *,
        batch_size: int = 32,
        threads: int | None = None,
    ) -> Generator[AssessedPhoto, None, None]:
        """Assess (name, photo) pairs in order; threads decode and detect, the recogniser runs on batches.

        Args:
            photos: if the name is empty, the path is used.
            batch_size: faces per call of the recogniser.
            threads: by default one per core, up to 8.

        Raises:
            InputError: ``batch_size`` or ``threads`` is below 1.
        """
        threads = min(os.cpu_count() or 1, _MAX_READERS) if threads is None else threads
        if batch_size < 1 or threads < 1:
            raise InputError(f"expected batch_size >= 1 and threads >= 1, got {batch_size} and {threads}")
        pending: list[Acquisition] = []
        with closing(in_order(self._acquire, photos, threads, "photo")) as acquired:
            for acquisition in acquired:
                pending.append(acquisition)
                if sum(len(item.faces) for item in pending) >= batch_size or len(pending) >= 2 * batch_size:
                    yield from self._assess(pending)
                    pending = []
        yield from self._assess(pending)

    def _acquire(self, photo: tuple[str, PhotoSource]) -> Acquisition:
        name, source = photo
        return acquire(source, self.detector, name=name, size=self.size, max_pixels=self.max_pixels)

    def _assess(self, acquired: Sequence[Acquisition]) -> list[AssessedPhoto]:
        captured = [photo.faces[:1] if self.which == "main" else photo.faces for photo in acquired]
        assessed = iter(self._assess_faces([face for faces in captured for face in faces]))
        return [
            AssessedPhoto(photo.name, photo, tuple(next(assessed) for _ in faces))
            for photo, faces in zip(acquired, captured)
        ]

    def _assess_faces(self, faces: Sequence[CapturedFace]) -> list[AssessedFace]:
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
        """mu (n, dim) and kappa (n,); zeros and NaN for a crop without a direction."""
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

# Not kept in the journal: a changed permission or an installed package may remove the cause.
_TRANSIENT_FAILURES = (Failure.UNREADABLE, Failure.UNSUPPORTED)


def rank_photos(
    paths: Sequence[str | Path], assessor: FaceAssessor | None = None, *, resume: str | Path | None = None
) -> list[Record]:
    """Assess all photos in files and folders; one row per face, highest kappa first, failures last.

    Args:
        paths: files and folders; folders are searched recursively.
        assessor: by default `FaceAssessor()`.
        resume: file of finished assessments; an interrupted call continues from it.

    Returns:
        Rows as from `ranked_faces`.

    Raises:
        StorageError: ``resume`` cannot be written; its content is kept.

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
    """`AssessedPhoto.to_dict` of every file, in order; records in ``resume`` are reused.

    Photos that could not be read, or need a missing package, are not recorded, so the next call retries them.

    Raises:
        FileFormatError: ``resume`` is a file of another kind.
        StorageError: ``resume`` cannot be written; its content is kept.

    Example:
        >>> from spherecf.data import orl_faces
        >>> photos = find_photos([orl_faces().root / "s1" / "1.pgm"]).photos
        >>> [len(photo["faces"]) for photo in assess_files(photos, FaceAssessor())]
        [1]
    """
    with nullcontext() if resume is None else Journal(resume, assessor_fingerprint(assessor)) as journal:
        pending: list[tuple[PhotoFile, Key]] = []  # keeps the order: a record from the journal waits its turn

        def fresh() -> Iterator[tuple[str, Path]]:
            for photo in photos:
                key = _key(photo.path)
                pending.append((photo, key))
                if journal is None or journal.find(key) is None:
                    yield photo.name, photo.path

        def known() -> Iterator[Record]:
            while journal is not None and pending:
                record = journal.find(pending[0][1])
                if record is None:
                    return
                yield {**record, "photo": pending.pop(0)[0].name}

        with closing(assessor.stream(fresh())) as stream:
            for assessed in stream:
                yield from known()
                (photo, key), record = pending.pop(0), assessed.to_dict()
                if journal is not None and assessed.failure not in _TRANSIENT_FAILURES:
                    journal.add(photo, record, key)
                yield record
        yield from known()


def assessor_fingerprint(assessor: FaceAssessor) -> str:
    """Hash of everything an assessment depends on: model, calibration, detector and settings."""
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
    """One row per face, by descending kappa, followed by one row per photo without a face.

    ``rank`` counts from 1, ties are ordered by name; without a kappa ``rank`` is None and ``quality`` -1.

    Args:
        photos: dictionaries from `AssessedPhoto.to_dict`.

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
    first = {"rank": None, "photo": photo["photo"]}
    last = {"size_px": photo["size_px"], "notes": photo["notes"], "failure": photo["failure"]}
    for number, face in enumerate(photo["faces"]):
        yield {**first, "face": number, **face, **last, "reason": ""}
    if not photo["faces"]:
        yield {**first, "face": None, "quality": -1, "kappa": None, **last, "reason": photo["reason"]}


def _key(path: Path) -> Key:
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return str(path), -1, -1
    return os.path.abspath(path), facts.st_size, facts.st_mtime_ns  # noqa: PTH100
