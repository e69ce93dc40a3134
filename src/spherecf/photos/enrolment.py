"""Enrol people from photos, and synchronise a gallery with folders of photos."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spherecf.common.files import sha256_file
from spherecf.common.parsing import composed
from spherecf.errors import InputError
from spherecf.gallery import Enrolled, Gallery, checked_identity
from spherecf.photos.assessment import AssessedFace, FaceAssessor
from spherecf.photos.files import PhotoFile, find_photos, printable

HowToEnrol = Literal["new", "add", "replace", "follow"]
Status = Literal["enrolled", "unchanged", "added", "renewed", "kept", "no face", "no folder", "bad name"]

_HASH = re.compile("[0-9a-f]{16}")
_NOT_COMPARABLE = (
    "enrolled without hashes of the photos, so changes cannot be detected; use replace to enrol again"
)
_NO_FACE_LEFT = "no photo shows a usable face; remove this person, or supply other photos"
_UNREADABLE = "some photos could not be read, so no photos were removed"


@dataclass(frozen=True)
class PhotoEnrolment:
    """Result of enrolling one person's photos.

    Attributes:
        identity: name of the person.
        status: "enrolled"; "unchanged"; "added": photos were added; "renewed": photos that were deleted or
            changed were removed; "kept": the template was not changed, see ``reason``; "no face": not
            enrolled; "no folder": still enrolled; "bad name": the name of the folder is not a valid identity.
        enrolled: entry in the gallery after the call; None if there is none, or if it was not read.
        added: names of the photos that were added to the template.
        removed: sources of the photos that were removed from the template.
        left_out: photos and folders that could not be used, with the reason.
        reason: why the template does not match the folder; "" if it does.
    """

    identity: str
    status: Status
    enrolled: Enrolled | None = None
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary."""
        return {
            "identity": self.identity,
            "status": self.status,
            **({} if self.enrolled is None else self.enrolled.to_dict()),
            "added": list(self.added),
            "removed": list(self.removed),
            "left_out": [{"photo": photo, "reason": reason} for photo, reason in self.left_out],
            "reason": self.reason,
        }


def enrol_photos(
    gallery: Gallery,
    assessor: FaceAssessor,
    identity: str,
    paths: str | Path | Sequence[str | Path],
    how: HowToEnrol = "new",
) -> PhotoEnrolment:
    """Enrol a person from photos. Photos with the same content count once.

    Args:
        gallery: gallery that was opened with the assessor's model.
        assessor: assessor that was created with ``faces="main"``.
        identity: name of the person.
        paths: photos, and folders to search recursively.
        how: "new": enrol a new person; "add": add the photos to those enrolled; "replace": replace the
            enrolled photos; "follow": add new photos, and remove enrolled photos that are no longer among the
            files. Enrolled photos are not assessed again. Nothing is removed if a file or folder cannot be
            read. The last usable photo of a template is never removed.

    Raises:
        InputError: ``how`` is "new" and the name is already enrolled, or the name is not valid.
        ModelError: the gallery belongs to another model than that of the assessor.
        StorageError: the gallery could not be written; it is unchanged.

    Example:
        >>> from spherecf.gallery import Gallery
        >>> import tempfile
        >>> from spherecf.data import orl_faces
        >>> assess = FaceAssessor(faces="main")
        >>> model, photos = assess.model.fingerprint(), orl_faces().root / "s1"
        >>> with Gallery.open(tempfile.mkdtemp() + "/g", model=model, dim=128, radius=64.0) as gallery:
        ...     first = enrol_photos(gallery, assess, "Ann", [photos / "1.pgm"])
        ...     again = enrol_photos(gallery, assess, "Ann", [photos / "1.pgm", photos / "2.pgm"], "follow")
        >>> first.status, again.status, again.enrolled.images
        ('enrolled', 'added', 2)
    """
    # In this function, "media" are hashes of the content of photos.
    files, enrolled_sources = _PhotosByHash.of(paths), {} if how == "new" else gallery.sources(identity)
    if how == "follow" and not all(map(_HASH.fullmatch, enrolled_sources)):
        return PhotoEnrolment(identity, "kept", left_out=tuple(files.unreadable), reason=_NOT_COMPARABLE)
    unchanged = set() if how == "replace" else enrolled_sources.keys() & files.photos.keys()
    new_photos = {medium: photo for medium, photo in files.photos.items() if medium not in unchanged}
    faces, faceless = _assess_main_faces(gallery, assessor, new_photos)
    left_out = (*files.unreadable, *faceless)
    if not faces and not unchanged:
        if enrolled_sources:
            return PhotoEnrolment(identity, "kept", left_out=left_out, reason=_NO_FACE_LEFT)
        return PhotoEnrolment(identity, "no face", left_out=left_out)
    may_remove = how == "follow" and not files.unreadable
    enrolled = gallery.enrol(
        identity,
        np.array([face.mu for _, face in faces.values()]),
        np.array([face.kappa for _, face in faces.values()]),
        media=list(faces),
        sources=[name for name, _ in faces.values()],
        add=how in ("add", "follow"),
        replace=how == "replace",
        keep=files.photos if may_remove else None,
    )
    if not enrolled_sources:
        return PhotoEnrolment(identity, "enrolled", enrolled, left_out=left_out)
    added = {medium: name for medium, (name, _) in faces.items() if medium not in enrolled_sources}
    removed = set()
    if may_remove or how == "replace":
        removed = enrolled_sources.keys() - faces.keys() - unchanged
    status: Status = "renewed" if removed or how == "replace" else "added" if added else "unchanged"
    return PhotoEnrolment(
        identity,
        status,
        enrolled,
        tuple(added.values()),
        tuple(source for medium, source in enrolled_sources.items() if medium in removed),
        left_out,
        _UNREADABLE if how == "follow" and files.unreadable else "",
    )


def people_of(folder: str | Path) -> dict[str, list[Path]]:
    """Sub-folders of photos by the name of the person, sorted.

    Names that differ only in Unicode composition belong to the same person. Hidden folders (with a leading
    dot) are ignored.

    Raises:
        InputError: the folder cannot be read, or has no sub-folder.

    Example:
        >>> from spherecf.data import orl_faces
        >>> list(people_of(orl_faces().root))[:3]
        ['s1', 's10', 's11']
    """
    folder = Path(folder)
    try:
        subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error
    if not subfolders:
        raise InputError(f"{folder}: expected one sub-folder of photos per person, found none")
    people: dict[str, list[Path]] = {}
    for path in subfolders:
        people.setdefault(composed(path.name).strip(), []).append(path)
    return people


def enrol_folders(
    gallery: Gallery,
    assessor: FaceAssessor,
    people: Mapping[str, Sequence[Path]],
    how: HowToEnrol = "follow",
) -> Iterator[PhotoEnrolment]:
    """Synchronise a gallery with folders of photos, then report enrolled people who have no folder.

    People are enrolled in order. Each person is written to the gallery before the next, so an interrupted
    call can be repeated. People without a folder stay enrolled.

    Args:
        gallery: see `enrol_photos`.
        assessor: see `enrol_photos`.
        people: folders or photos by name, from `people_of`.
        how: see `enrol_photos`. With "new", none of the people may be enrolled yet.

    Raises:
        StorageError: the gallery could not be written; the people before are enrolled.

    Example:
        >>> from spherecf.gallery import Gallery
        >>> import tempfile
        >>> from spherecf.data import orl_faces
        >>> assess = FaceAssessor(faces="main")
        >>> model, people = assess.model.fingerprint(), {"Ann": [orl_faces().root / "s1" / "1.pgm"]}
        >>> with Gallery.open(tempfile.mkdtemp() + "/g", model=model, dim=128, radius=64.0) as gallery:
        ...     [result.status for _ in range(2) for result in enrol_folders(gallery, assess, people)]
        ['enrolled', 'unchanged']
    """
    new_identity_of: dict[str, str] = {}  # by the hash of a photo, to detect renamed folders
    for name, paths in people.items():
        try:
            identity = checked_identity(name)
        except InputError as error:
            yield PhotoEnrolment(printable(Path(name)), "bad name", reason=str(error))
            continue
        enrolment = enrol_photos(gallery, assessor, identity, paths, how)
        if enrolment.status == "enrolled":
            new_identity_of |= dict.fromkeys(gallery.sources(identity), identity)
        yield enrolment
    for enrolled in gallery.list():
        if enrolled.identity not in people:
            new_names = {""}
            if new_identity_of:
                new_names = {new_identity_of.get(medium, "") for medium in gallery.sources(enrolled.identity)}
            reason = ""
            if "" not in new_names:  # every photo is enrolled under a new name
                reason = f"the same photos are enrolled as {', '.join(sorted(new_names))}"
            yield PhotoEnrolment(enrolled.identity, "no folder", enrolled, reason=reason)


@dataclass(frozen=True)
class _PhotosByHash:
    """Photos by the hash of their content, without duplicates, and unreadable paths with the reason."""

    photos: dict[str, PhotoFile]
    unreadable: list[tuple[str, str]]

    @classmethod
    def of(cls, paths: str | Path | Sequence[str | Path]) -> "_PhotosByHash":
        listing = find_photos(paths)
        files = cls({}, list(listing.unreadable))
        for photo in listing.photos:
            try:
                if not photo.path.is_file():  # reading a device or pipe might never end
                    raise FileNotFoundError("no such file")
                files.photos.setdefault(sha256_file(photo.path)[:16], photo)
            except OSError as error:
                files.unreadable.append((photo.name, f"cannot be read: {error.strerror or error}"))
        return files


def _assess_main_faces(
    gallery: Gallery, assessor: FaceAssessor, photos: Mapping[str, PhotoFile]
) -> tuple[dict[str, tuple[str, AssessedFace]], list[tuple[str, str]]]:
    """Return (name, main face) by content hash, and the photos without a usable face with the reason."""
    faces: dict[str, tuple[str, AssessedFace]] = {}
    faceless: list[tuple[str, str]] = []
    stream = assessor.stream((photo.name, photo.path) for photo in photos.values())
    for medium, photo in zip(photos, stream):
        if photo.model:
            gallery.require(photo.model)
        if photo.usable_face is not None:
            faces[medium] = photo.name, photo.usable_face
        else:
            faceless.append((photo.name, photo.problem))
    return faces, faceless
