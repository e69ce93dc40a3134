"""Photos of people to a gallery, and a gallery that follows folders of photos as they change."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spherecf.common.files import sha256_file
from spherecf.common.names import composed
from spherecf.errors import InputError
from spherecf.gallery import Enrolled, Gallery, checked_identity
from spherecf.photos.assessment import AssessedFace, FaceAssessor
from spherecf.photos.files import PhotoFile, find_photos, printable
from spherecf.photos.template import NO_DIRECTION

HowToEnrol = Literal["new", "add", "replace", "follow"]
Status = Literal["enrolled", "unchanged", "added", "renewed", "kept", "no face", "no folder", "bad name"]

_HASH = re.compile("[0-9a-f]{16}")
_NOT_COMPARABLE = "enrolled without hashes of its photos, which so cannot be compared; replace renews it"
_NOTHING = "no photo shows a usable face; remove this person, or give other photos"
_UNREADABLE = "not every photo could be read, so none was taken out"


@dataclass(frozen=True)
class PhotoEnrolment:
    """What became of one person's photos.

    Attributes:
        identity: the name.
        status: "enrolled"; "unchanged"; "added", photos to those enrolled; "renewed", without photos that are
            gone or have other content; "kept", as it was, for the ``reason``; "no face", not enrolled;
            "no folder", enrolled still; "bad name", a folder that nobody can be called after.
        enrolled: what the gallery holds now; None where it holds nobody of this name, or was not asked.
        added: photos that came into the template.
        removed: sources of the photos that left it.
        left_out: photos and folders that could not be used, with the reason.
        reason: why the template is not what the folder holds; "" otherwise.
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
    """Enrol somebody from photos; each counts once, by the hash of its content.

    Args:
        gallery: made by the assessor's model.
        assessor: of faces "main".
        identity: the name.
        paths: files and folders, folders with all below them.
        how: "new"; "add" to the photos of somebody enrolled; "replace" them; "follow": add those that are
            new, and leave out those that are not among the files any more. Photos that are enrolled are not
            assessed again. Nothing is left out where a file or folder cannot be read, and no template is
            left without a photo.

    Raises:
        InputError: "new", and the name is enrolled; or the name is none.
        StorageError: the gallery could not be written; it is as it was.

    Example:
        >>> import tempfile
        >>> from spherecf.data import orl_faces
        >>> assess = FaceAssessor(faces="main")
        >>> model, photos = assess.model.fingerprint(), orl_faces().root / "s1"
        >>> with Gallery.open(tempfile.mkdtemp(), model=model, dim=128, radius=64.0) as gallery:
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
        reason = _NOTHING if known else ""
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
    """Folders of photos by the names of their people, in order.

    Names that differ only in how Unicode composes their letters are one person. Folders whose names start
    with a dot are passed by.

    Raises:
        InputError: the folder cannot be read, or holds no folder.

    Example:
        >>> from spherecf.data import orl_faces
        >>> list(people_of(orl_faces().root))[:3]
        ['s1', 's10', 's11']
    """
    folder = Path(folder)
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error
    if not inside:
        raise InputError(f"{folder}: expected a folder of photos for each person, there is none")
    people: dict[str, list[Path]] = {}
    for path in inside:
        people.setdefault(composed(path.name).strip(), []).append(path)
    return people


def enrol_folders(
    gallery: Gallery,
    assessor: FaceAssessor,
    people: Mapping[str, Sequence[Path]],
    how: HowToEnrol = "follow",
) -> Iterator[PhotoEnrolment]:
    """Bring a gallery to what folders of photos hold; then name those enrolled who have no folder.

    The people of the folders come in order, each written before the next begins, so the same call goes on
    after an interruption. Nobody is removed.

    Args:
        gallery, assessor: as for `enrol_photos`.
        people: from `people_of`.
        how: as for `enrol_photos`; "new" is for people who are not enrolled.

    Raises:
        StorageError: the gallery could not be written; who came before is enrolled.

    Example:
        >>> import tempfile
        >>> from spherecf.data import orl_faces
        >>> assess = FaceAssessor(faces="main")
        >>> model, people = assess.model.fingerprint(), {"Ann": [orl_faces().root / "s1" / "1.pgm"]}
        >>> with Gallery.open(tempfile.mkdtemp(), model=model, dim=128, radius=64.0) as gallery:
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
            now = {moved.get(medium, "") for medium in gallery.sources(enrolled.identity)} if moved else {""}
            reason = "" if "" in now else f"the same photos are enrolled as {', '.join(sorted(now))}"
            yield PhotoEnrolment(enrolled.identity, "no folder", enrolled, reason=reason)


@dataclass(frozen=True)
class _Files:
    """Photos by the hash of their content, the first of each, and what cannot be read, with the reason."""

    photos: dict[str, PhotoFile]
    unreadable: list[tuple[str, str]]

    @classmethod
    def of(cls, paths: Sequence[str | Path]) -> "_Files":
        found = find_photos(paths)
        files = cls({}, list(found.unreadable))
        for photo in found.photos:
            try:
                if not photo.path.is_file():  # also a device or a pipe, which would never end
                    raise FileNotFoundError("no such file")
                files.photos.setdefault(sha256_file(photo.path)[:16], photo)
            except OSError as error:
                files.unreadable.append((photo.name, f"cannot be read: {error.strerror or error}"))
        return files


def _faces(
    assessor: FaceAssessor, photos: Mapping[str, PhotoFile]
) -> tuple[dict[str, tuple[str, AssessedFace]], list[tuple[str, str]]]:
    """Names and main faces by the hashes of their photos; and photos without one, with the reason."""
    faces: dict[str, tuple[str, AssessedFace]] = {}
    faceless: list[tuple[str, str]] = []
    stream = assessor.stream((photo.name, photo.path) for photo in photos.values())
    for medium, photo in zip(photos, stream):
        if photo.main is not None and np.isfinite(photo.main.kappa):
            faces[medium] = photo.name, photo.main
        else:
            faceless.append((photo.name, photo.reason or NO_DIRECTION))
    return faces, faceless
