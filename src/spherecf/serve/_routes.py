"""The photo verbs over HTTP."""

import asyncio
import math
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.security import HTTPBearer
from pydantic import ValidationError

from spherecf.common.version import __version__
from spherecf.photos import AssessedPhoto, TemplatePhoto, build_template, compare
from spherecf.serve._desk import Desk
from spherecf.serve._schemas import (
    DEFAULT_MAX_FMR,
    ERRORS,
    Bounds,
    Compared,
    CompareFields,
    Fields,
    Health,
    Info,
    Member,
    Photo,
    Template,
    form_body,
)
from spherecf.serve._upload import Form, read_form

FieldsT = TypeVar("FieldsT", bound=Fields)
open_routes = APIRouter(prefix="/api", tags=["service"])
BEARER = Depends(HTTPBearer(auto_error=False))  # for the documentation only: the guard has looked already
photo_routes = APIRouter(prefix="/api", responses=ERRORS, dependencies=[BEARER])


def desk_of(request: Request) -> Desk:
    """The application's desk, for the handlers."""
    desk: Desk = request.app.state.desk
    return desk


AtDesk = Annotated[Desk, Depends(desk_of)]


def parse(kind: type[FieldsT], form: Form) -> FieldsT:
    """The fields beside the photos, typed.

    Raises:
        HTTPException: 422, one that is unknown, missing or out of range.
    """
    try:
        return kind.model_validate(form.fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the form"
        raise HTTPException(422, f"{where}: {first['msg']}.") from error


@open_routes.get("/health")
async def health() -> Health:
    """Is the service up? Needs no token and says nothing else."""
    return Health()


@photo_routes.get("/info", tags=["service"])
async def info(desk: AtDesk) -> Info:
    """Which model answers, and what it can promise."""
    model, limits = desk.assessor.model, desk.limits
    rules = model.calibration.decisions
    rates = sorted({rule.alpha for rule in rules if (rule.score, rule.error) == ("mls", "fmr")}, reverse=True)
    return Info(
        version=__version__,
        model=model.fingerprint(),
        backbone=model.backbone.name,
        gallery=desk.gallery is not None,
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
async def quality(request: Request, desk: AtDesk) -> Photo:
    """Is this photo good enough? Every face with its confidence and what holds it back.

    A photo without a face, or one that cannot be read, is an answer (`failure`), not an error.
    """
    form = await read_form(request, desk.limits, {"photo": (1, 1)})
    parse(Fields, form)
    (assessed,) = await desk.assess(form.photos["photo"])
    return photo_of(assessed)


@photo_routes.post(
    "/compare",
    tags=["photos"],
    openapi_extra=form_body(CompareFields, left="One photo.", right="The other photo."),
)
async def compare_two(request: Request, desk: AtDesk) -> Compared:
    """Are these the same person? A match, no match, or undecided, with the rate of error promised.

    Of a photo with several faces the main one is compared.
    """
    form = await read_form(request, desk.limits, {"left": (1, 1), "right": (1, 1)})
    asked = parse(CompareFields, form)
    left, right = await desk.assess([*form.photos["left"], *form.photos["right"]])
    model = desk.assessor.model
    found = await asyncio.to_thread(
        compare, left, right, model.calibration, radius=model.radius, max_fmr=asked.max_fmr
    )
    sides = {"left": photo_of(left), "right": photo_of(right)}
    return Compared.model_validate(found.to_dict() | sides)


@photo_routes.post(
    "/template", tags=["photos"], openapi_extra=form_body(Fields, photos="Photos of one person, in order.")
)
async def template(request: Request, desk: AtDesk) -> Template:
    """Which photos make a good template? The pooled kappa as photos are added, and what each is worth.

    Nothing is kept: send all the photos again to see what one more does.
    """
    form = await read_form(request, desk.limits, {"photos": (1, desk.limits.max_files)})
    parse(Fields, form)
    photos = await desk.assess(form.photos["photos"])
    if not any(map(usable, photos)):
        rows = [TemplatePhoto(photo.name, reason=why_not(photo)).to_dict() for photo in photos]
        faceless = [Member.model_validate(row) for row in rows]
        return Template(kappa=None, grown=[], groups=0, pooled=[], warnings=[], photos=faceless)
    model = desk.assessor.model
    found = await asyncio.to_thread(build_template, photos, model.calibration, radius=model.radius)
    return Template.model_validate(found.to_dict())


def photo_of(assessed: AssessedPhoto) -> Photo:
    """An assessed photo as it is answered: with landmarks, for those who draw."""
    facts = assessed.to_dict()
    for face, shown in zip(assessed.faces, facts["faces"]):
        shown["landmarks"] = face.captured.landmarks.round(1).tolist()
    return Photo.model_validate(facts)


def usable(photo: AssessedPhoto) -> bool:
    """Is there a main face, and did the recogniser give it a direction?"""
    return photo.main is not None and math.isfinite(photo.main.kappa)


def why_not(photo: AssessedPhoto) -> str:
    """Why a photo is not usable."""
    return photo.reason or "the recogniser gives no direction for this face"
