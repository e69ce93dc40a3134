"""What the service takes and returns, typed; the documentation is made from it."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_MAX_FMR = 1e-4


class Problem(BaseModel):
    """What went wrong."""

    error: str = Field(
        description="One sentence: what was expected, what came, what to do.",
        examples=["The field 'right' is missing: expected a photo in it."],
    )


class Health(BaseModel):
    """The service is up."""

    status: Literal["ok"] = "ok"


class Bounds(BaseModel):
    """What one request may hold."""

    max_files: int = Field(description="Photos in one request.")
    max_file_bytes: int = Field(description="Size of one photo.")
    max_request_bytes: int = Field(description="Size of the whole request.")


class Info(BaseModel):
    """What this service can do."""

    version: str = Field(description="Of spherecf.")
    model: str = Field(description="Fingerprint of the confidence model.")
    backbone: str = Field(description="Name of the recogniser.")
    gallery: bool = Field(description="Is there a gallery to search and enrol in?")
    max_fmrs: list[float] = Field(description="Rates of wrong matches that `compare` can promise.")
    default_max_fmr: float = Field(description="The one it takes unasked.")
    limits: Bounds


class Facts(BaseModel):
    """How a face was taken; these explain a confidence and do not enter it."""

    model_config = ConfigDict(extra="allow")

    eye_distance_px: float
    yaw_degrees: float | None = Field(
        description="Turned to the image's right (+) or left (-); a rough estimate."
    )
    pitch_degrees: float | None = Field(description="Looking down (+) or up (-); a rough estimate.")
    roll_degrees: float | None = Field(description="Leaning clockwise (+) or anticlockwise (-).")
    sharpness: float
    brightness: float = Field(description="Mean grey level, 0..255.")
    contrast: float = Field(description="Standard deviation of the grey levels.")
    inside: float = Field(description="Share of the face that lies within the picture, 0..1.")
    face_px: tuple[int, int] = Field(description="Width and height of the box.")


class Face(BaseModel):
    """One face in a photo."""

    quality: int = Field(
        description="0..100 as ISO/IEC 29794-1 counts; -1 where it could not be assessed.", examples=[38]
    )
    percentile: float | None = Field(
        description="0..100: share of reference faces that are less sure.", examples=[38.3]
    )
    kappa: float | None = Field(
        description="Concentration: how sure the recogniser may be. Larger is surer.", examples=[157.79]
    )
    expected_cosine: float | None = Field(
        description="Expected cosine to the person's true direction.", examples=[0.6748]
    )
    reasons: list[str] = Field(
        description="What is conspicuous about the picture, in plain words.",
        examples=[["eyes 14 px apart", "blurred"]],
    )
    box: tuple[float, float, float, float] = Field(
        description="x, y, width, height in pixels of the photo.", examples=[(8.7, 11.7, 72.0, 99.7)]
    )
    landmarks: list[tuple[float, float]] = Field(
        description="Eyes, nose, corners of the mouth in pixels, the image's left one first."
    )
    detector_score: float = Field(description="0..1, of the face detector.")
    facts: Facts


class Photo(BaseModel):
    """A photo and its faces, the main one first."""

    photo: str = Field(description="File name that was sent.", examples=["me.jpg"])
    size_px: tuple[int, int] | None = Field(
        description="Width and height, upright; null where unreadable.", examples=[(92, 112)]
    )
    failure: str | None = Field(
        description="Why there is no face to work with, in one word; null if there is.", examples=["no_face"]
    )
    reason: str = Field(description="The same as a sentence.")
    notes: list[str] = Field(description="What was done to read it, e.g. turned by its Exif tag.")
    faces: list[Face]


class Compared(BaseModel):
    """The decision on two photos."""

    decision: Literal["match", "non_match", "undecided"]
    why: str = Field(
        description="One sentence.", examples=["of pairs of strangers at most 1 in 10,000 scores as high"]
    )
    score: float | None = Field(description="Mutual likelihood score; null where a photo has no face.")
    cosine: float | None
    llr: float | None = Field(description="Natural log of the likelihood ratio, one person to two people.")
    max_fmr: float = Field(description="Rate of wrong matches that was asked for.", examples=[1e-3])
    accept: float | None = Field(description="Match from this score on; null: nothing can be promised.")
    reject: float | None = Field(description="No match below this score; undecided between the two.")
    least_kappa: float | None = Field(description="With a face less sure than this: undecided.")
    fmr_seen: float | None = Field(description="Share of wrong matches when the rule was tested.")
    fmr_upper: float | None = Field(description="The bound on it that the test gave.")
    left: Photo
    right: Photo
    notes: list[str] = Field(description="What else should be known, e.g. that a photo has several faces.")


class Member(BaseModel):
    """One photo of a template."""

    name: str
    kappa: float | None = Field(description="Of its main face; null without one.")
    quality: int
    weight: float = Field(description="Its share in the template, 0..1.")
    gain: float = Field(description="Kappa that the template would lose without it.")
    helps: bool
    stranger: bool = Field(description="Looks like another person than the rest.")
    group: int = Field(description="Photos of one number look like one person, 0 the largest group.")
    same_as: str | None = Field(description="Name of the earlier photo that it repeats.")
    reason: str = Field(description="Why it has no face, or why it is suspected; else empty.")
    reasons: list[str] = Field(description="What is conspicuous about the picture.")


class Template(BaseModel):
    """Several photos pooled."""

    kappa: float | None = Field(description="Of the pooled faces; null without a usable face.")
    grown: list[float] = Field(description="Kappa after each photo that is in it, in the order sent.")
    groups: int = Field(description="How many people the faces look like.")
    pooled: list[str] = Field(description="Names of the photos that are in it.")
    warnings: list[str]
    photos: list[Member]


class Candidate(BaseModel):
    """Somebody enrolled who is near."""

    identity: str
    template: str = Field(description="Key of the template in the gallery.")
    score: float = Field(description="Mutual likelihood score.")
    cosine: float
    kappa: float = Field(description="Of the template.")
    llr: float | None = Field(description="Natural log of the likelihood ratio, one person to two people.")
    accept: float | None = Field(description="Match from this score on.")
    reject: float | None = Field(description="No match below this score.")


class Identified(BaseModel):
    """Who it is: one of the enrolled, nobody of them, or undecided."""

    answer: Literal["identified", "unknown", "undecided"]
    identity: str | None = Field(description="Who, if identified.")
    why: str
    candidates: list[Candidate] = Field(description="Highest score first.")
    max_fpir: float = Field(description="At most this share of strangers is taken for somebody enrolled.")
    gallery: int = Field(description="Identities searched.")
    fmr: float | None = Field(description="What one comparison may cost for that.")
    fmr_used: float | None = Field(description="The rate of the threshold that was used.")
    least_kappa: float | None = Field(description="With a photo less sure than this: undecided.")
    exact: bool = Field(description="Was every template searched?")
    scored: int = Field(description="Templates scored; the others were shown to score lower.")
    photo: Photo


class Enrolled(BaseModel):
    """One identity of the gallery."""

    template: str = Field(description="Key of the template in the gallery.")
    identity: str
    kappa: float = Field(description="Of the pooled template.")
    percentile: float | None
    images: int = Field(description="Photos that stand behind it.")
    media: int = Field(description="The same with copies counted once.")
    warnings: list[str] = Field(description="What to look at, e.g. poor photos, or a resemblance.")
    sources: list[str] = Field(description="File names of the first of them.")
    enrolled: str = Field(description="Time, UTC.")
    changed: str = Field(description="Time, UTC.")


class Enrolments(BaseModel):
    """Everybody enrolled."""

    identities: list[Enrolled]


class GalleryInfo(BaseModel):
    """The gallery as a whole."""

    model: str = Field(description="Fingerprint of the model that made it.")
    dim: int = Field(description="Of the directions.")
    radius: float = Field(description="r of the scores.")
    created: str = Field(description="Time, UTC.")
    identities: int
    images: int = Field(description="Photos that stand behind them.")


class Removed(BaseModel):
    """What a removal removed."""

    identity: str
    removed: int = Field(description="Templates; they are gone, not marked.")


class Fields(BaseModel):
    """Fields of a form; one that is not known is refused."""

    model_config = ConfigDict(extra="forbid")


class CompareFields(Fields):
    """Fields of `compare` beside the photos."""

    max_fmr: float = Field(DEFAULT_MAX_FMR, gt=0, le=1, description="Rate of wrong matches.")


class IdentifyFields(Fields):
    """Fields of `identify` beside the photo."""

    top: int = Field(5, ge=1, le=100, description="Candidates to name at most.")
    max_fpir: float = Field(0.01, gt=0, lt=1, description="Rate of strangers who may be named.")


class EnrolFields(Fields):
    """Fields of an enrolment beside the photos."""

    identity: str = Field(min_length=1, max_length=100, description="Name to enrol under.")
    consent: bool = Field(False, description="true: the person knows of the enrolment and has agreed to it.")
    replace: bool = Field(False, description="true: replace what is enrolled under this name.")


def form_body(fields: type[Fields], **photos: str) -> dict[str, Any]:
    """The OpenAPI description of a form: fields of a model, and photos with a description each.

    A name with a list of photos in it ends with s.
    """
    schema = {"properties": {}} | fields.model_json_schema()
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    files = {
        name: ({"type": "array", "items": file} if name.endswith("s") else file) | {"description": text}
        for name, text in photos.items()
    }
    schema["properties"] = files | schema["properties"]
    schema |= {"type": "object", "required": [*photos, *schema.get("required", [])]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "The token is missing or wrong."},
    413: {"model": Problem, "description": "Too large, or too many photos."},
    422: {"model": Problem, "description": "Something is missing or out of range."},
    429: {"model": Problem, "description": "Too many requests; wait for Retry-After seconds."},
    503: {"model": Problem, "description": "Busy; wait for Retry-After seconds."},
}
