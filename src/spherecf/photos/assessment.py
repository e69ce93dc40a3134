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

# The thresholds were set on 310 real faces: 150 of LFW, 80 frontal and 80 profile faces of CFP. 40 of them
# were also blurred by a Gaussian.
MIN_EYE_DISTANCE_PX = 24.0
"""In the aligned crop the eyes are 35 px apart; below two thirds of that the crop is mostly interpolated."""
MAX_YAW_DEGREES = 35.0
"""1 % of the LFW faces are turned by more than 31 degrees, 95 % of the CFP profiles by more than 42."""
MAX_PITCH_DEGREES = 25.0
"""The 99th percentile of the absolute pitch in LFW is 22."""
UPSIDE_DOWN_DEGREES = 120.0
"""Absolute roll. Such faces are still aligned if the detector finds their landmarks."""
MIN_SHARPNESS = 30.0
"""1 % of LFW are below 29; the median is 39 after a blur of 2 px in the crop, 20 after 3 px."""
MIN_BRIGHTNESS, MAX_BRIGHTNESS = 50.0, 200.0
"""Mean grey level. Of the 310 faces, 1 % are below 52 and 1 % above 192."""
MIN_CONTRAST = 18.0
"""Standard deviation of the grey levels: 1 % of LFW are below 22."""
MIN_INSIDE = 0.8
"""Fraction of the face box inside the image; a whole face at the edge of its crop still has 0.85."""


def explain(facts: CaptureFacts) -> tuple[str, ...]:
    """List capture problems that may lower recognition accuracy, most serious first.

    Example:
        >>> explain(CaptureFacts(12.8, 52.0, 3.0, 1.0, 400.0, 120.0, 45.0, 1.0, (30, 40)))
        ('eyes 13 px apart', 'turned 52 degrees')
    """
    # Turning the head moves the eyes closer together, which does not make the face small. NaN gives 0.4.
    foreshortening = max(0.4, math.cos(math.radians(facts.yaw_degrees)))
    problems = {
        "upside down": abs(facts.roll_degrees) > UPSIDE_DOWN_DEGREES,
        f"eyes {facts.eye_distance_px:.0f} px apart": (
            facts.eye_distance_px < MIN_EYE_DISTANCE_PX * foreshortening
        ),
        f"turned {abs(facts.yaw_degrees):.0f} degrees": abs(facts.yaw_degrees) > MAX_YAW_DEGREES,
        f"looking {'down' if facts.pitch_degrees > 0 else 'up'}": (
            abs(facts.pitch_degrees) > MAX_PITCH_DEGREES
        ),
        "blurred": facts.sharpness < MIN_SHARPNESS,
        "dark": facts.brightness < MIN_BRIGHTNESS,
        "overexposed": facts.brightness > MAX_BRIGHTNESS,
        "low contrast": facts.contrast < MIN_CONTRAST,
        "cut off by the image border": facts.inside < MIN_INSIDE,
    }
    return tuple(problem for problem, present in problems.items() if present)


PhotoSource = str | Path | bytes | NDArray[np.uint8]
"""A path, the bytes of a file, or RGB pixels (height, width, 3)."""

_MAX_THREADS = 8

NO_DIRECTION = "the recogniser gives no direction for this face"


@dataclass(frozen=True, eq=False)
class AssessedFace:
    """A face with the confidence of the recogniser.

    Attributes:
        captured: crop, box, landmarks and capture facts of the face.
        mu: (dim,) unit direction; zeros if the recogniser gives no direction.
        kappa: concentration; NaN if the recogniser gives no direction.
        percentile: percentage of reference faces with a lower kappa, 0 .. 100; None if the model is not
            calibrated.
        quality: the percentile as an ISO/IEC 29794-1 integer, 0 .. 100; -1 if it could not be computed.
        expected_cosine: A_d(kappa), the expected cosine to the prototype of the person.
        reasons: capture problems, which may explain kappa but do not influence it.
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
        """SHA-256 of the pixels of the crop. Copies of the same image have the same value."""
        return hashlib.sha256(self.captured.crop.tobytes()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary without the direction and the pixels."""
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
    """A photo and its faces, the main face first, or the reason why it has no face.

    ``model`` is the fingerprint of the model that assessed it; "" if unknown.
    """

    name: str
    acquisition: Acquisition
    faces: tuple[AssessedFace, ...]
    model: str = ""

    @property
    def main(self) -> AssessedFace | None:
        """The main face: the one with the largest box area times detector score. None without a face."""
        return self.faces[0] if self.faces else None

    @property
    def usable_face(self) -> AssessedFace | None:
        """The main face, if the recogniser gives a direction for it; otherwise None."""
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
        """Return a JSON-serialisable dictionary, with the faces as in `AssessedFace.to_dict`."""
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
    """Detect the faces in a photo and compute the direction and confidence of each.

    Args:
        model: confidence model; by default the calibrated model that is bundled with the package.
        detector: a callable that maps RGB pixels to `Face` records; by default `FaceDetector()`.
        faces: assess "all" faces of a photo, or only the "main" face.
        max_pixels: larger images are rejected before they are decoded.

    Raises:
        InputError: ``faces`` is neither "all" nor "main", or the recogniser's input is not square.

    Example:
        >>> from spherecf.data import orl_faces
        >>> assess = FaceAssessor()
        >>> photo = assess(orl_faces().image(0), "anna")
        >>> photo.name, len(photo.faces), photo.main.mu.shape, photo.main.kappa > 0
        ('anna', 1, (128,), True)
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
        self._fingerprint = self.model.fingerprint()

    def __call__(self, photo: PhotoSource, name: str = "") -> AssessedPhoto:
        """Assess one photo. An unusable photo raises no exception; see ``failure`` and ``reason``."""
        return self._assess([self._acquire((name, photo))])[0]

    def stream(
        self,
        photos: Iterable[tuple[str, PhotoSource]],
        *,
        batch_size: int = 32,
        threads: int | None = None,
    ) -> Generator[AssessedPhoto, None, None]:
        """Assess photos in order. Threads decode and detect; the recogniser runs on batches of faces.

        Args:
            photos: (name, photo) pairs; if a name is empty, the path is used.
            batch_size: faces per forward pass of the recogniser.
            threads: number of threads; by default one per core, up to 8.

        Raises:
            InputError: ``batch_size`` or ``threads`` is below 1.
        """
        threads = min(os.cpu_count() or 1, _MAX_THREADS) if threads is None else threads
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
        if not (isinstance(photo, tuple) and len(photo) == 2):
            raise InputError(f"photos: expected (name, photo) pairs, got {photo!r}")
        name, source = photo
        return acquire(source, self.detector, name=name, size=self.size, max_pixels=self.max_pixels)

    def _assess(self, acquired: Sequence[Acquisition]) -> list[AssessedPhoto]:
        captured = [photo.faces[:1] if self.which == "main" else photo.faces for photo in acquired]
        assessed = iter(self._assess_faces([face for faces in captured for face in faces]))
        return [
            AssessedPhoto(photo.name, photo, tuple(next(assessed) for _ in faces), self._fingerprint)
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
        """mu (n, dim) and kappa (n,); zeros and NaN for crops without a direction."""
        mu = np.zeros((len(crops), self.model.backbone.dim), np.float32)
        kappa = np.full(len(crops), np.nan)
        for rows, result in isolate_failures(self.model.embed, crops, ModelError):
            if not isinstance(result, Exception):
                mu[rows] = result[0].cpu().float().numpy()
                kappa[rows] = result[1].double().exp().cpu().numpy()
        return mu, kappa


def _number(value: float, digits: int) -> float | None:
    return None if math.isnan(value) else round(value, digits)


Record = dict[str, Any]

# These failures are not recorded in the journal, since the user may fix permissions or install a package.
_TRANSIENT_FAILURES = (Failure.UNREADABLE, Failure.UNSUPPORTED)


def rank_photos(
    paths: str | Path | Sequence[str | Path],
    assessor: FaceAssessor | None = None,
    *,
    resume: str | Path | None = None,
) -> list[Record]:
    """Assess photos and rank their faces: one row per face, highest kappa first, failures last.

    Args:
        paths: photos, and folders to search recursively.
        assessor: assessor to use; by default `FaceAssessor()`.
        resume: file of finished assessments; an interrupted call continues from it.

    Returns:
        One dictionary per face, and one per photo without a face. ``rank`` counts from 1; it is None, and
        ``quality`` is -1, for photos without a face.

    Raises:
        StorageError: ``resume`` cannot be written; its content is preserved.

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
    """Assess photo files and yield `AssessedPhoto.to_dict` of each, in order.

    Records in ``resume`` are reused. Photos that could not be read or that need a missing package are not
    recorded, so the next call retries them.

    Raises:
        FileFormatError: ``resume`` is a file of another kind.
        StorageError: ``resume`` cannot be written; its content is preserved.

    Example:
        >>> from spherecf.data import orl_faces
        >>> photos = find_photos([orl_faces().root / "s1" / "1.pgm"]).photos
        >>> [len(photo["faces"]) for photo in assess_files(photos, FaceAssessor())]
        [1]
    """
    with nullcontext() if resume is None else Journal(resume, assessor_fingerprint(assessor)) as journal:
        pending: list[tuple[PhotoFile, Key]] = []  # photos to yield, in order, whether recorded or not

        def unrecorded_photos() -> Iterator[tuple[str, Path]]:
            for photo in photos:
                key = _key(photo.path)
                pending.append((photo, key))
                if journal is None or journal.find(key) is None:
                    yield photo.name, photo.path

        def recorded_until_next() -> Iterator[Record]:
            """Records at the head of the queue, up to the next photo that is not in the journal."""
            while journal is not None and pending:
                record = journal.find(pending[0][1])
                if record is None:
                    return
                yield {**record, "photo": pending.pop(0)[0].name}

        with closing(assessor.stream(unrecorded_photos())) as stream:
            for assessed in stream:
                yield from recorded_until_next()
                (photo, key), record = pending.pop(0), assessed.to_dict()
                if journal is not None and assessed.failure not in _TRANSIENT_FAILURES:
                    journal.add(photo, record, key)
                yield record
        yield from recorded_until_next()


def assessor_fingerprint(assessor: FaceAssessor) -> str:
    """Hash of everything that an assessment depends on: model, calibration, detector and settings."""
    calibration = assessor.model.calibration
    detector = getattr(assessor.detector, "sha256", repr(assessor.detector))
    facts = [
        assessor.model.fingerprint(),
        assessor.model.backbone.engine,
        None if calibration is None else calibration.to_dict(),
        [detector, getattr(assessor.detector, "min_score", None)],
        [assessor.which, assessor.max_pixels, "spherecf.photos/3"],
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def ranked_faces(photos: Iterable[Record]) -> list[Record]:
    """Rank faces by descending kappa: one row per face, followed by one row per photo without a face.

    ``rank`` counts from 1, and ties are ordered by name. Rows without a kappa have ``rank`` None and
    ``quality`` -1.

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
    head = {"rank": None, "photo": photo["photo"]}
    tail = {"size_px": photo["size_px"], "notes": photo["notes"], "failure": photo["failure"]}
    for index, face in enumerate(photo["faces"]):
        yield {**head, "face": index, **face, **tail, "reason": ""}
    if not photo["faces"]:
        yield {**head, "face": None, "quality": -1, "kappa": None, **tail, "reason": photo["reason"]}


def _key(path: Path) -> Key:
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return str(path), -1, -1
    return os.path.abspath(path), facts.st_size, facts.st_mtime_ns  # noqa: PTH100
