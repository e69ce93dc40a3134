"""Enrol people from photos, and keep a gallery in step with folders of photos."""

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
    "enrolled without hashes of its photos, so changes cannot be detected; use replace to renew it"
)
_NO_FACE_LEFT = "no photo shows a usable face; remove this person, or supply other photos"
_UNREADABLE = "some photos could not be read, so none was removed"


@dataclass(frozen=True)
class PhotoEnrolment:
    """Result of enrolling one person's photos.

    Attributes:
        identity: the name.
        status: "enrolled"; "unchanged"; "added": photos were added; "renewed": photos that were deleted or
            changed were removed; "kept": the template was left as it was, see ``reason``; "no face": not
            enrolled; "no folder": still enrolled; "bad name": the folder's name is not valid as an identity.
        enrolled: the gallery's entry after the call; None if there is none, or it was not read.
        added: photos that were added to the template.
        removed: sources of the photos that were removed from it.
        left_out: photos and folders that could not be used, with the reason.
        reason: why the template does not match the folder; "" otherwise.
    """

    identity: str
    status: Status
    enrolled: Enrolled | None = None
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
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
    paths: Sequence[str | Path],
    how: HowToEnrol = "new",
) -> PhotoEnrolment:
    """Enrol a person from photos; photos with the same content count once.

    Args:
        gallery: opened with the assessor's model.
        assessor: created with ``faces="main"``.
        identity: the name.
        paths: files and folders, folders with all below them.
        how: "new"; "add" to the enrolled photos; "replace" them; "follow": add new photos and remove those
            that are no longer among the files. Enrolled photos are not assessed again. If a file or folder
            cannot be read, nothing is removed; nor is the last usable photo of a template.

    Raises:
        InputError: "new" and the name is already enrolled; or the name is not valid.
        StorageError: the gallery could not be written; it is unchanged.

    Example:
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
    files, known = _Files.of(paths), {} if how == "new" else gallery.sources(identity)
    if how == "follow" and not all(map(_HASH.fullmatch, known)):
        return PhotoEnrolment(identity, "kept", left_out=tuple(files.unreadable), reason=_NOT_COMPARABLE)
    stay = set() if how == "replace" else known.keys() & files.photos.keys()
    faces, faceless = _faces(assessor, {m: photo for m, photo in files.photos.items() if m not in stay})
    left_out = (*files.unreadable, *faceless)
    if not faces and not stay:
        reason = _NO_FACE_LEFT if known else ""
        return PhotoEnrolment(identity, "kept" if known else "no face", left_out=left_out, reason=reason)
    follow = how == "follow" and not files.unreadable
    done = gallery.enrol(
        identity,
        np.array([face.mu for _, face in faces.values()]),
        np.array([face.kappa for _, face in faces.values()]),
        media=list(faces),
        sources=[name for name, _ in faces.values()],
        add=how in ("add", "follow"),
        replace=how == "replace",
        keep=files.photos if follow else None,
    )
    added = {medium: name for medium, (name, _) in faces.items() if medium not in known}
    gone = known.keys() - faces.keys() - stay if follow or how == "replace" else set()
    status: Status = "renewed" if gone or how == "replace" else "added" if added else "unchanged"
    return PhotoEnrolment(
        identity,
        status if known else "enrolled",
        done,
        tuple(added.values()) if known else (),
        tuple(source for medium, source in known.items() if medium in gone),
        left_out,
        _UNREADABLE if how == "follow" and known and files.unreadable else "",
    )


def people_of(folder: str | Path) -> dict[str, list[Path]]:
    """Sub-folders of photos by person name, in order.

    Names that differ only in Unicode composition belong to one person. Hidden folders (leading dot) are
    ignored.

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

    People are processed in order and each is written before the next begins, so an interrupted call can be
    repeated. Nobody is removed.

    Args:
        gallery, assessor: as for `enrol_photos`.
        people: from `people_of`.
        how: as for `enrol_photos`; "new" requires that nobody is enrolled yet.

    Raises:
        StorageError: the gallery could not be written; people processed before are enrolled.

    Example:
        >>> import tempfile
        >>> from spherecf.data import orl_faces
        >>> assess = FaceAssessor(faces="main")
        >>> model, people = assess.model.fingerprint(), {"Ann": [orl_faces().root / "s1" / "1.pgm"]}
        >>> with Gallery.open(tempfile.mkdtemp() + "/g", model=model, dim=128, radius=64.0) as gallery:
        ...     [done.status for _ in range(2) for done in enrol_folders(gallery, assess, people)]
        ['enrolled', 'unchanged']
    """
    moved: dict[str, str] = {}
    for name, paths in people.items():
        try:
            identity = checked_identity(name)
        except InputError as error:
            yield PhotoEnrolment(printable(Path(name)), "bad name", reason=str(error))
            continue
        done = enrol_photos(gallery, assessor, identity, paths, how)
        if done.status == "enrolled":
            moved |= dict.fromkeys(gallery.sources(identity), identity)
        yield done
    for enrolled in gallery.list():
        if enrolled.identity not in people:
            names = (
                {moved.get(medium, "") for medium in gallery.sources(enrolled.identity)} if moved else {""}
            )
            reason = "" if "" in names else f"the same photos are enrolled as {', '.join(sorted(names))}"
            yield PhotoEnrolment(enrolled.identity, "no folder", enrolled, reason=reason)


@dataclass(frozen=True)
class _Files:
    """Photos by the hash of their content (the first of equal ones), and unreadable paths with the reason."""

    photos: dict[str, PhotoFile]
    unreadable: list[tuple[str, str]]

    @classmethod
    def of(cls, paths: Sequence[str | Path]) -> "_Files":
        listing = find_photos(paths)
        files = cls({}, list(listing.unreadable))
        for photo in listing.photos:
            try:
                if not photo.path.is_file():  # nor a device or pipe, which reading would never finish
                    raise FileNotFoundError("no such file")
                files.photos.setdefault(sha256_file(photo.path)[:16], photo)
            except OSError as error:
                files.unreadable.append((photo.name, f"cannot be read: {error.strerror or error}"))
        return files


def _faces(
    assessor: FaceAssessor, photos: Mapping[str, PhotoFile]
) -> tuple[dict[str, tuple[str, AssessedFace]], list[tuple[str, str]]]:
    """(name, main face) by content hash; and the photos without a usable face, with the reason."""
    faces: dict[str, tuple[str, AssessedFace]] = {}
    faceless: list[tuple[str, str]] = []
    stream = assessor.stream((photo.name, photo.path) for photo in photos.values())
    for medium, photo in zip(photos, stream):
        if photo.usable_face is not None:
            faces[medium] = photo.name, photo.usable_face
        else:
            faceless.append((photo.name, photo.problem))
    return faces, faceless
