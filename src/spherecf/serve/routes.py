"""Routes of the API: the photo commands and the gallery over HTTP."""

import asyncio
import unicodedata
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.security import HTTPBearer
from pydantic import ValidationError

from spherecf.common.parsing import composed
from spherecf.common.version import __version__
from spherecf.gallery import Identification
from spherecf.photos import AssessedPhoto, TemplatePhoto, build_template, compare
from spherecf.serve.schemas import (
    DEFAULT_MAX_FMR,
    ERRORS,
    GONE,
    Bounds,
    Compared,
    CompareFields,
    EnrolFields,
    Enrolled,
    Enrolments,
    Fields,
    GalleryInfo,
    Health,
    Identified,
    IdentifyFields,
    Info,
    Photo,
    Problem,
    Removed,
    Template,
    TemplateFields,
    form_body,
)
from spherecf.serve.upload import Form, read_form
from spherecf.serve.worker import Worker

FieldsT = TypeVar("FieldsT", bound=Fields)
open_routes = APIRouter(prefix="/api", tags=["service"])
BEARER = Depends(HTTPBearer(auto_error=False))  # for the API description only; `Guard` checks the token
photo_routes = APIRouter(prefix="/api", responses=ERRORS, dependencies=[BEARER])


def worker_of(request: Request) -> Worker:
    """The worker of the application, for the handlers."""
    worker: Worker = request.app.state.worker
    return worker


AppWorker = Annotated[Worker, Depends(worker_of)]


def parse(kind: type[FieldsT], form: Form) -> FieldsT:
    """Validate the fields of a form other than the photos.

    Raises:
        HTTPException: 422, a field is unknown, missing or out of range.
    """
    try:
        return kind.model_validate(form.fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the form"
        if first["type"] == "extra_forbidden":
            expected = ", ".join(kind.model_fields) or "none but photos"
            raise HTTPException(422, f"{field}: is not a field of this form: expected {expected}.") from error
        raise HTTPException(422, f"{field}: {first['msg']}.") from error


@open_routes.get("/health")
async def health() -> Health:
    """Check that the service is running. Needs no token."""
    return Health()


@photo_routes.get("/info", tags=["service"])
async def info(worker: AppWorker) -> Info:
    """Describe the model, the error rates it can guarantee, and the limits of the service."""
    model, limits = worker.assessor.model, worker.limits
    rules = model.calibration.decisions
    rates = sorted(
        {rule.alpha for rule in rules if rule.score in ("mls", "evidence") and rule.error == "fmr"},
        reverse=True,
    )
    return Info(
        version=__version__,
        model=model.fingerprint(),
        backbone=model.backbone.name,
        gallery=worker.gallery is not None,
        max_fmrs=rates,
        default_max_fmr=DEFAULT_MAX_FMR,
        limits=Bounds(
            max_files=limits.max_files,
            max_file_bytes=limits.max_file_bytes,
            max_request_bytes=limits.max_request_bytes,
        ),
    )


@photo_routes.post(
    "/quality", tags=["photos"], openapi_extra=form_body(Fields, photo="JPEG, PNG, WebP, TIFF, ...")
)
async def quality(request: Request, worker: AppWorker) -> Photo:
    """Assess a photo: the confidence and capture problems of every face.

    A photo that has no face or cannot be read is not an error; the response states the `failure`.
    """
    form = await read_form(request, worker.limits, {"photo": (1, 1)})
    parse(Fields, form)
    (assessed,) = await worker.assess(form.photos["photo"])
    return photo_of(assessed)


@photo_routes.post(
    "/compare",
    tags=["photos"],
    openapi_extra=form_body(CompareFields, left="First photo.", right="Second photo."),
)
async def compare_two(request: Request, worker: AppWorker) -> Compared:
    """Decide whether two photos show the same person: match, non-match or undecided.

    If a photo has several faces, the main face is compared.
    """
    form = await read_form(request, worker.limits, {"left": (1, 1), "right": (1, 1)})
    fields = parse(CompareFields, form)
    left, right = await worker.assess([*form.photos["left"], *form.photos["right"]])
    model = worker.assessor.model
    comparison = await asyncio.to_thread(
        compare, left, right, model.calibration, radius=model.radius, max_fmr=fields.max_fmr
    )
    sides = {"left": photo_of(left), "right": photo_of(right)}
    return Compared.model_validate(comparison.to_dict() | sides)


@photo_routes.post(
    "/template",
    tags=["photos"],
    responses=GONE,
    openapi_extra=form_body(TemplateFields, photos="Photos of one person, or their tickets, in order."),
)
async def template(request: Request, worker: AppWorker) -> Template:
    """Pool photos into a template: the pooled kappa after each photo, and the contribution of each photo.

    Nothing is stored. To add a photo, send all photos again, or send their tickets instead. To get tickets,
    set `tickets=true`.
    """
    form = await read_form(request, worker.limits, {"photos": (1, worker.limits.max_files)})
    fields = parse(TemplateFields, form)
    photos = await worker.summarise(form.photos["photos"])
    if any(photo.usable_face for photo in photos):
        model = worker.assessor.model
        pooled = await asyncio.to_thread(build_template, photos, model.calibration, radius=model.radius)
        facts = pooled.to_dict()
    else:
        rows = [TemplatePhoto(photo.name, reason=photo.problem).to_dict() for photo in photos]
        facts = {"kappa": None, "grown": [], "groups": 0, "pooled": [], "warnings": [], "photos": rows}
    for row, photo in zip(facts["photos"], photos):
        row["ticket"] = worker.tickets.issue(photo) if fields.tickets else None
    return Template.model_validate(facts)


def photo_of(assessed: AssessedPhoto) -> Photo:
    """An assessed photo as a response, with landmarks rounded to a tenth of a pixel."""
    facts = assessed.to_dict()
    for face, face_facts in zip(assessed.faces, facts["faces"]):
        face_facts["landmarks"] = face.captured.landmarks.round(1).tolist()
    return Photo.model_validate(facts)


_GALLERY_ERRORS: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "No person with this name is enrolled."},
    409: {"model": Problem, "description": "This service has no gallery."},
}
gallery_routes = APIRouter(
    prefix="/api/gallery", tags=["gallery"], responses={**ERRORS, **_GALLERY_ERRORS}, dependencies=[BEARER]
)


def gallery_of(worker: AppWorker) -> Worker:
    """The worker, if it has a gallery.

    Raises:
        HTTPException: 409, the service has no gallery.
    """
    if worker.gallery is None:
        raise HTTPException(409, "This service has no gallery; start it with --gallery PATH.")
    return worker


GalleryWorker = Annotated[Worker, Depends(gallery_of)]


def checked_name(text: str) -> str:
    """Check a name for enrolment: 1 to 100 letters of any script, digits, spaces and . ' - _

    Raises:
        HTTPException: 422, the name has other characters or another length.
    """
    name = composed(text).strip()
    allowed = all(c in " .'-_’" or unicodedata.category(c)[0] in "LMN" for c in name)
    if not (0 < len(name) <= 100 and allowed and any(c.isalnum() for c in name)):
        raise HTTPException(422, "identity: expected 1 to 100 letters, digits, spaces and . ' - _ only.")
    return name


@gallery_routes.get("")
async def describe(worker: GalleryWorker) -> GalleryInfo:
    """Describe the gallery: its size and its model."""
    return GalleryInfo.model_validate(await worker.call_gallery(worker.gallery.info))


@gallery_routes.get("/identities")
async def everybody(worker: GalleryWorker) -> Enrolments:
    """List all enrolled people."""
    people = await worker.call_gallery(worker.gallery.list)
    return Enrolments(identities=[Enrolled.model_validate(person.to_dict()) for person in people])


@gallery_routes.post(
    "/identities",
    responses=GONE,
    openapi_extra=form_body(
        EnrolFields, photos="Photos of this person, or their tickets. The main face of each photo is used."
    ),
)
async def enrol(request: Request, worker: GalleryWorker) -> Enrolled:
    """Enrol a person from photos, with their consent.

    The gallery stores the name, the template, and the direction, kappa and file name of each photo. The
    photos are not stored.
    """
    form = await read_form(request, worker.limits, {"photos": (1, worker.limits.max_files)})
    fields = parse(EnrolFields, form)
    name = checked_name(fields.identity)
    if not fields.consent:
        raise HTTPException(
            422, "consent: expected true; a person may be enrolled only with their knowledge and consent."
        )
    photos = await worker.summarise(form.photos["photos"])
    usable = [(photo, photo.usable_face) for photo in photos if photo.usable_face]
    if not usable:
        raise HTTPException(422, f"No photo shows a usable face. {photos[0].name}: {photos[0].problem}")
    enrolled = await worker.call_gallery(
        worker.gallery.enrol,
        name,
        np.stack([face.mu for _, face in usable]),
        np.asarray([face.kappa for _, face in usable]),
        media=[photo.media for photo, _ in usable],
        sources=[photo.name for photo, _ in usable],
        replace=fields.replace,
    )
    return Enrolled.model_validate(enrolled.to_dict())


@gallery_routes.post(
    "/identify", openapi_extra=form_body(IdentifyFields, photo="Photo of the person to identify.")
)
async def identify(request: Request, worker: GalleryWorker) -> Identified:
    """Identify the main face of a photo: an enrolled person, unknown or undecided."""
    form = await read_form(request, worker.limits, {"photo": (1, 1)})
    fields = parse(IdentifyFields, form)
    (assessed,) = await worker.assess(form.photos["photo"])
    if (face := assessed.usable_face) is not None:
        options = {"top": fields.top, "max_fpir": fields.max_fpir}
        result = await worker.call_gallery(worker.gallery.identify, face.mu, face.kappa, **options)
    else:
        result = Identification("undecided", None, assessed.problem, (), fields.max_fpir, gallery=0)
    return Identified.model_validate(result.to_dict() | {"photo": photo_of(assessed)})


@gallery_routes.delete("/identities/{identity:path}")
async def remove(identity: str, worker: GalleryWorker) -> Removed:
    """Remove a person: delete all templates of this name."""
    count: int = await worker.call_gallery(worker.gallery.remove, identity)
    if not count:
        raise HTTPException(404, "No person with this name is enrolled.")
    return Removed(identity=identity, removed=count)
