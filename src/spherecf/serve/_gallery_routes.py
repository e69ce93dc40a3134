"""The gallery over HTTP."""

import hashlib
import unicodedata
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, HTTPException, Path, Request

from spherecf.common.names import composed
from spherecf.gallery import Identification
from spherecf.serve._desk import Desk
from spherecf.serve._routes import BEARER, AtDesk, parse, photo_of, usable, why_not
from spherecf.serve._schemas import (
    ERRORS,
    EnrolFields,
    Enrolled,
    Enrolments,
    GalleryInfo,
    Identified,
    IdentifyFields,
    Problem,
    Removed,
    form_body,
)
from spherecf.serve._upload import read_form

_MORE: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "Nobody of that name is enrolled."},
    409: {"model": Problem, "description": "This service has no gallery."},
}
gallery_routes = APIRouter(
    prefix="/api/gallery", tags=["gallery"], responses={**ERRORS, **_MORE}, dependencies=[BEARER]
)


def gallery_of(desk: AtDesk) -> Desk:
    """The desk, if it has a gallery."""
    if desk.gallery is None:
        raise HTTPException(409, "This service has no gallery; start it with --gallery PATH.")
    return desk


AtGallery = Annotated[Desk, Depends(gallery_of)]


def checked_name(text: str) -> str:
    """A name to enrol under: 1 to 100 letters of any script, digits, blanks and . ' - _

    Raises:
        HTTPException: 422, it holds something else.
    """
    name = composed(text).strip()
    fits = all(sign in " .'-_’" or unicodedata.category(sign)[0] in "LMN" for sign in name)
    if not (0 < len(name) <= 100 and fits and any(sign.isalnum() for sign in name)):
        raise HTTPException(422, "identity: expected 1 to 100 letters, digits, blanks and . ' - _ only.")
    return name


@gallery_routes.get("")
async def describe(desk: AtGallery) -> GalleryInfo:
    """How large the gallery is, and for which model."""
    return GalleryInfo.model_validate(await desk.ask(desk.gallery.info))


@gallery_routes.get("/identities")
async def everybody(desk: AtGallery) -> Enrolments:
    """Everybody who is enrolled."""
    found = await desk.ask(desk.gallery.list)
    return Enrolments(identities=[Enrolled.model_validate(one.to_dict()) for one in found])


@gallery_routes.post(
    "/identities",
    openapi_extra=form_body(EnrolFields, photos="Photos of this person; each with one main face."),
)
async def enrol(request: Request, desk: AtGallery) -> Enrolled:
    """Enrol a person from photos, with their consent.

    The gallery keeps the name, the template, and of each photo direction, kappa and file name. The photos
    are forgotten.
    """
    form = await read_form(request, desk.limits, {"photos": (1, desk.limits.max_files)})
    asked = parse(EnrolFields, form)
    name = checked_name(asked.identity)
    if not asked.consent:
        raise HTTPException(
            422, "consent: expected true. A face is enrolled only if its person knows of it and has agreed."
        )
    uploads = form.photos["photos"]
    assessed = await desk.assess(uploads)
    used = [(upload, photo.main) for upload, photo in zip(uploads, assessed) if usable(photo)]
    if not used:
        raise HTTPException(422, f"No photo shows a face to enrol. {uploads[0].name}: {why_not(assessed[0])}")
    enrolled = await desk.ask(
        desk.gallery.enrol,
        name,
        np.stack([face.mu for _, face in used]),
        np.asarray([face.kappa for _, face in used]),
        media=[hashlib.sha256(upload.content).hexdigest()[:16] for upload, _ in used],
        sources=[upload.name for upload, _ in used],
        replace=asked.replace,
    )
    return Enrolled.model_validate(enrolled.to_dict())


@gallery_routes.post(
    "/identify", openapi_extra=form_body(IdentifyFields, photo="The photo of whom to look for.")
)
async def identify(request: Request, desk: AtGallery) -> Identified:
    """Who is this? One of the enrolled, nobody of them, or undecided."""
    form = await read_form(request, desk.limits, {"photo": (1, 1)})
    asked = parse(IdentifyFields, form)
    (assessed,) = await desk.assess(form.photos["photo"])
    if usable(assessed):
        face, options = assessed.main, {"top": asked.top, "max_fpir": asked.max_fpir}
        found = await desk.ask(desk.gallery.identify, face.mu, face.kappa, **options)
    else:
        found = Identification("undecided", None, why_not(assessed), (), asked.max_fpir, gallery=0)
    return Identified.model_validate(found.to_dict() | {"photo": photo_of(assessed)})


@gallery_routes.delete("/identities/{identity:path}")
async def remove(identity: Annotated[str, Path(max_length=200)], desk: AtGallery) -> Removed:
    """Forget somebody: every template of this name is deleted."""
    count: int = await desk.ask(desk.gallery.remove, identity)
    if not count:
        raise HTTPException(404, "Nobody of that name is enrolled.")
    return Removed(identity=identity, removed=count)
