"""Types of requests and responses. The API documentation is generated from them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_MAX_FMR = 1e-4


class Problem(BaseModel):
    """An error."""

    error: str = Field(
        description="One sentence that says what was expected, what was received, or what to do.",
        examples=["The field 'right' is missing: expected a photo in it."],
    )


class Health(BaseModel):
    """The service is running."""

    status: Literal["ok"] = "ok"


class Bounds(BaseModel):
    """Limits of a request."""

    max_files: int = Field(description="Maximum number of photos in a request.")
    max_file_bytes: int = Field(description="Maximum size of a photo, in bytes.")
    max_request_bytes: int = Field(description="Maximum size of the request body, in bytes.")


class Info(BaseModel):
    """Model and settings of this service."""

    version: str = Field(description="Version of spherecf.")
    model: str = Field(description="Fingerprint of the confidence model.")
    backbone: str = Field(description="Name of the recogniser.")
    gallery: bool = Field(description="Whether the service has a gallery.")
    max_fmrs: list[float] = Field(description="False match rates that `compare` can guarantee.")
    default_max_fmr: float = Field(description="Default false match rate of `compare`.")
    limits: Bounds


class Facts(BaseModel):
    """Capture conditions of a face. They may explain its confidence, but do not influence it."""

    model_config = ConfigDict(extra="allow")

    eye_distance_px: float = Field(description="Distance between the eyes, in pixels of the photo.")
    yaw_degrees: float | None = Field(
        description="Head turned towards the right (+) or left (-) edge of the image; a rough estimate."
    )
    pitch_degrees: float | None = Field(description="Looking down (+) or up (-); a rough estimate.")
    roll_degrees: float | None = Field(description="In-plane rotation, clockwise (+) or anticlockwise (-).")
    sharpness: float = Field(description="Sharpness of the middle of the aligned crop; higher is sharper.")
    brightness: float = Field(description="Mean grey level, 0..255.")
    contrast: float = Field(description="Standard deviation of the grey levels.")
    inside: float = Field(description="Fraction of the face box inside the image, 0..1.")
    face_px: tuple[int, int] = Field(description="Width and height of the face box, in pixels.")


class Face(BaseModel):
    """A face in a photo."""

    quality: int = Field(
        description="Quality as an ISO/IEC 29794-1 integer, 0..100; -1 if it could not be assessed.",
        examples=[38],
    )
    percentile: float | None = Field(
        description="Percentage of reference faces with a lower kappa, 0..100.", examples=[38.3]
    )
    kappa: float | None = Field(
        description="Concentration of the von Mises-Fisher distribution; a higher kappa is more confident.",
        examples=[157.79],
    )
    expected_cosine: float | None = Field(
        description="Expected cosine to the prototype of the person.", examples=[0.6748]
    )
    reasons: list[str] = Field(
        description="Capture problems.",
        examples=[["eyes 14 px apart", "blurred"]],
    )
    box: tuple[float, float, float, float] = Field(
        description="Face box: x, y, width and height, in pixels of the photo.",
        examples=[(8.7, 11.7, 72.0, 99.7)],
    )
    landmarks: list[tuple[float, float]] = Field(
        description="Eyes, nose and mouth corners, in pixels of the photo. Of each pair, the left one in the "
        "image comes first."
    )
    detector_score: float = Field(description="Score of the face detector, 0..1.")
    facts: Facts


class Photo(BaseModel):
    """A photo and its faces, the main face first."""

    photo: str = Field(description="File name.", examples=["me.jpg"])
    size_px: tuple[int, int] | None = Field(
        description="Width and height after rotation by the Exif tag; null if the photo cannot be read.",
        examples=[(92, 112)],
    )
    failure: str | None = Field(
        description="Why the photo has no face, as a code; null if it has a face.", examples=["no_face"]
    )
    reason: str = Field(description="Why the photo has no face, as a sentence; empty if it has a face.")
    notes: list[str] = Field(description="How the photo was read, e.g. rotated by its Exif tag.")
    faces: list[Face]


class Compared(BaseModel):
    """Decision on two photos."""

    decision: Literal["match", "non_match", "undecided"]
    reason: str = Field(
        description="Reason for the decision, as a sentence.",
        examples=["at most 1 in 10,000 pairs of different people scores this high"],
    )
    score: float | None = Field(description="Mutual likelihood score; null if a photo has no face.")
    cosine: float | None = Field(description="Cosine of the two directions; null if a photo has no face.")
    llr: float | None = Field(
        description="Natural log of the likelihood ratio of the same person versus two people."
    )
    evidence: float | None = Field(
        description="Value that is compared with the thresholds: the calibrated evidence, which accounts for "
        "both kappas, or the score."
    )
    max_fmr: float = Field(description="Guaranteed false match rate, as requested.", examples=[1e-3])
    accept: float | None = Field(
        description="Match threshold: a match if the evidence is at least this value; null if no threshold "
        "guarantees the false match rate."
    )
    reject: float | None = Field(
        description="Non-match threshold: a non-match if the evidence is below this value; undecided between "
        "the thresholds."
    )
    min_kappa: float | None = Field(description="Undecided if the kappa of a face is below this value.")
    fmr_measured: float | None = Field(description="False match rate measured when the rule was tested.")
    fmr_upper: float | None = Field(description="Upper confidence bound on the measured false match rate.")
    tested_on: str = Field(description="Data on which the rule was tested.")
    fmr_extrapolated: tuple[float, float] | None = Field(
        description="95 % interval of a false match rate that was too small to be counted and was "
        "extrapolated; otherwise null."
    )
    left: Photo
    right: Photo
    notes: list[str] = Field(description="Further remarks, e.g. that a photo has several faces.")


class Member(BaseModel):
    """Contribution of one photo to a template."""

    name: str
    kappa: float | None = Field(description="Kappa of the main face; null if there is no usable face.")
    quality: int = Field(description="Quality of the main face, 0..100; -1 if there is no usable face.")
    weight: float = Field(description="Share of the photo in the summed kappa of the template, 0..1.")
    gain: float = Field(description="Decrease of the pooled kappa if the photo were left out.")
    helps: bool = Field(description="Whether the photo raises the pooled kappa enough to be useful.")
    stranger: bool = Field(
        description="Whether the photo looks like a different person from most of the photos."
    )
    group: int = Field(
        description="Photos with the same number look like the same person; 0 is the largest group."
    )
    same_as: str | None = Field(description="Name of an earlier photo that is the same image.")
    reason: str = Field(
        description="Why there is no usable face, or why the photo is a suspected stranger; otherwise empty."
    )
    reasons: list[str] = Field(description="Capture problems.")
    ticket: str | None = Field(
        description="Ticket to send instead of the photo, valid until the service stops; null unless "
        "`tickets=true` was set."
    )


class Template(BaseModel):
    """Several photos, pooled into a template."""

    kappa: float | None = Field(description="Pooled kappa; null if there is no usable face.")
    grown: list[float] = Field(description="Pooled kappa after each pooled photo, in the order sent.")
    groups: int = Field(description="Number of different people that the faces seem to show.")
    pooled: list[str] = Field(description="Names of the pooled photos.")
    warnings: list[str]
    photos: list[Member]


class Candidate(BaseModel):
    """An enrolled person with a high score."""

    identity: str
    template: str = Field(description="Key of the template in the gallery.")
    score: float = Field(description="Mutual likelihood score.")
    cosine: float = Field(description="Cosine of the directions of the photo and the template.")
    kappa: float = Field(description="Kappa of the template.")
    llr: float | None = Field(
        description="Natural log of the likelihood ratio of the same person versus two people."
    )
    accept: float | None = Field(
        description="Match threshold: a match if the evidence, or the score, is at least this value."
    )
    reject: float | None = Field(
        description="Non-match threshold: a non-match if the evidence, or the score, is below this value."
    )
    evidence: float | None = Field(
        None,
        description="Calibrated evidence, which accounts for both kappas; null if the score is compared "
        "with the thresholds.",
    )


class Identified(BaseModel):
    """Result of an identification: an enrolled person, unknown or undecided."""

    answer: Literal["identified", "unknown", "undecided"]
    identity: str | None = Field(description="Name of the person; null if not identified.")
    reason: str = Field(description="Reason for the answer, as a sentence.")
    candidates: list[Candidate] = Field(description="Candidates, highest score first.")
    max_fpir: float = Field(
        description="Guaranteed bound on the fraction of people outside the gallery who are identified as a "
        "member."
    )
    gallery: int = Field(description="Number of enrolled identities.")
    fmr: float | None = Field(description="False match rate allowed for a single comparison.")
    fmr_used: float | None = Field(description="False match rate of the threshold that was used.")
    min_kappa: float | None = Field(description="Undecided if the kappa of the face is below this value.")
    exact: bool = Field(description="Whether the search was exact.")
    scored: int = Field(description="Number of templates scored; no other has a higher score.")
    tested_on: str | None = Field(description="Data on which the rule was tested; null without a rule.")
    photo: Photo


class Enrolled(BaseModel):
    """An enrolled person."""

    template: str = Field(description="Key of the template in the gallery.")
    identity: str = Field(description="Name of the person.")
    kappa: float = Field(description="Kappa of the pooled template.")
    percentile: float | None = Field(
        description="Percentage of reference faces with a lower kappa, 0..100; null without a calibration."
    )
    images: int = Field(description="Number of photos in the template.")
    media: int = Field(description="Number of distinct photos in the template.")
    warnings: list[str] = Field(description="Warnings, e.g. low quality, or resemblance to another person.")
    sources: list[str] = Field(description="File names of the first photos.")
    enrolled: str = Field(description="Time of the enrolment (UTC).")
    changed: str = Field(description="Time of the last change (UTC).")


class Enrolments(BaseModel):
    """All enrolled people."""

    identities: list[Enrolled]


class GalleryInfo(BaseModel):
    """Size and model of the gallery."""

    model: str = Field(description="Fingerprint of the model.")
    dim: int = Field(description="Dimension of the directions.")
    radius: float = Field(description="Radius r of the mutual likelihood score.")
    created: str = Field(description="Time of creation (UTC).")
    identities: int = Field(description="Number of enrolled identities.")
    images: int = Field(description="Number of photos in all templates.")


class Removed(BaseModel):
    """Result of a removal."""

    identity: str
    removed: int = Field(description="Number of templates that were removed.")


class Fields(BaseModel):
    """Fields of a form. Unknown fields are rejected."""

    model_config = ConfigDict(extra="forbid")


class CompareFields(Fields):
    """Fields of `compare` other than the photos."""

    max_fmr: float = Field(DEFAULT_MAX_FMR, gt=0, le=1, description="Maximum false match rate.")


class TemplateFields(Fields):
    """Fields of `template` other than the photos."""

    tickets: bool = Field(False, description="Set to true to get a ticket for each photo.")


class IdentifyFields(Fields):
    """Fields of `identify` other than the photo."""

    top: int = Field(5, ge=1, le=100, description="Maximum number of candidates.")
    max_fpir: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="Maximum fraction of people outside the gallery who are identified as a member.",
    )


class EnrolFields(Fields):
    """Fields of an enrolment other than the photos."""

    identity: str = Field(min_length=1, max_length=100, description="Name of the person.")
    consent: bool = Field(
        False, description="Set to true if the person knows about the enrolment and has agreed to it."
    )
    replace: bool = Field(False, description="Set to true to replace the photos enrolled under this name.")


def form_body(fields: type[Fields], **photos: str) -> dict[str, Any]:
    """OpenAPI description of a form.

    Args:
        fields: model of the fields other than the photos.
        photos: description of each field with photos. If the name ends with s, the field is a list of photos.
    """
    schema = {"properties": {}} | fields.model_json_schema()
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    files = {
        name: ({"type": "array", "items": file, "minItems": 1} if name.endswith("s") else file)
        | {"description": description}
        for name, description in photos.items()
    }
    schema["properties"] = files | schema["properties"]
    schema |= {"type": "object", "required": [*photos, *schema.get("required", [])]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request or its form is malformed."},
    401: {"model": Problem, "description": "The token is missing or wrong."},
    403: {"model": Problem, "description": "The request was sent by a page of another site."},
    408: {"model": Problem, "description": "The photos arrived too slowly."},
    413: {
        "model": Problem,
        "description": "The request or a photo is too large, or there are too many photos.",
    },
    415: {"model": Problem, "description": "The body is not a form (multipart/form-data)."},
    421: {"model": Problem, "description": "The host name is not allowed."},
    422: {"model": Problem, "description": "A field is missing or out of range."},
    429: {"model": Problem, "description": "Too many requests; wait for Retry-After seconds."},
    503: {"model": Problem, "description": "The service is busy; wait for Retry-After seconds."},
}
GONE: dict[int | str, dict[str, Any]] = {
    410: {"model": Problem, "description": "A ticket was not issued by this service; send the photo."}
}
