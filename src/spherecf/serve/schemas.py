"""Types of requests and responses; the API documentation is generated from them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_MAX_FMR = 1e-4


class Problem(BaseModel):
    """An error."""

    error: str = Field(
        description="One sentence: what was expected, what was received, what to do.",
        examples=["The field 'right' is missing: expected a photo in it."],
    )


class Health(BaseModel):
    """The service is running."""

    status: Literal["ok"] = "ok"


class Bounds(BaseModel):
    """Limits of one request."""

    max_files: int = Field(description="Photos in one request.")
    max_file_bytes: int = Field(description="Size of one photo.")
    max_request_bytes: int = Field(description="Size of the whole request body.")


class Info(BaseModel):
    """Model and options of this service."""

    version: str = Field(description="Version of spherecf.")
    model: str = Field(description="Fingerprint of the confidence model.")
    backbone: str = Field(description="Name of the recogniser.")
    gallery: bool = Field(description="Whether the service has a gallery.")
    max_fmrs: list[float] = Field(description="False match rates that `compare` can guarantee.")
    default_max_fmr: float = Field(description="The default of `compare`.")
    limits: Bounds


class Facts(BaseModel):
    """Capture conditions of a face; they help to explain its confidence and do not influence it."""

    model_config = ConfigDict(extra="allow")

    eye_distance_px: float
    yaw_degrees: float | None = Field(
        description="Rotation to the image's right (+) or left (-); a rough estimate."
    )
    pitch_degrees: float | None = Field(description="Looking down (+) or up (-); a rough estimate.")
    roll_degrees: float | None = Field(description="In-plane rotation, clockwise (+) or anticlockwise (-).")
    sharpness: float
    brightness: float = Field(description="Mean grey level, 0..255.")
    contrast: float = Field(description="Standard deviation of the grey levels.")
    inside: float = Field(description="Share of the face box inside the picture, 0..1.")
    face_px: tuple[int, int] = Field(description="Width and height of the box.")


class Face(BaseModel):
    """One face in a photo."""

    quality: int = Field(
        description="Quality by ISO/IEC 29794-1, 0..100; -1 if it could not be assessed.", examples=[38]
    )
    percentile: float | None = Field(
        description="Percentage of reference faces with a lower kappa, 0..100.", examples=[38.3]
    )
    kappa: float | None = Field(
        description="Concentration of the von Mises-Fisher distribution; larger is more confident.",
        examples=[157.79],
    )
    expected_cosine: float | None = Field(
        description="Expected cosine to the person's prototype.", examples=[0.6748]
    )
    reasons: list[str] = Field(
        description="Capture problems.",
        examples=[["eyes 14 px apart", "blurred"]],
    )
    box: tuple[float, float, float, float] = Field(
        description="x, y, width, height in pixels of the photo.", examples=[(8.7, 11.7, 72.0, 99.7)]
    )
    landmarks: list[tuple[float, float]] = Field(
        description="Eyes, nose, mouth corners in pixels; of each pair the one on the image's left first."
    )
    detector_score: float = Field(description="Score of the face detector, 0..1.")
    facts: Facts


class Photo(BaseModel):
    """A photo and its faces, the main one first."""

    photo: str = Field(description="File name.", examples=["me.jpg"])
    size_px: tuple[int, int] | None = Field(
        description="Width and height after rotation by Exif; null if unreadable.", examples=[(92, 112)]
    )
    failure: str | None = Field(
        description="Code of the reason why there is no face; null if there is one.", examples=["no_face"]
    )
    reason: str = Field(description="The reason as a sentence.")
    notes: list[str] = Field(description="Steps taken to read it, e.g. rotation by its Exif tag.")
    faces: list[Face]


class Compared(BaseModel):
    """The decision on two photos."""

    decision: Literal["match", "non_match", "undecided"]
    reason: str = Field(
        description="The reason, as a sentence.",
        examples=["at most 1 in 10,000 pairs of different people scores this high"],
    )
    score: float | None = Field(description="Mutual likelihood score; null if a photo has no face.")
    cosine: float | None
    llr: float | None = Field(
        description="Natural log of the likelihood ratio, one person versus two people."
    )
    evidence: float | None = Field(
        description="What is compared with the thresholds: evidence that knows both kappas, or the score."
    )
    max_fmr: float = Field(description="Guaranteed false match rate, as requested.", examples=[1e-3])
    accept: float | None = Field(
        description="Match if the evidence is at least this; null if no threshold guarantees the rate."
    )
    reject: float | None = Field(
        description="Non-match if the evidence is below this; undecided between the two."
    )
    min_kappa: float | None = Field(description="Undecided if the kappa of a face is below this.")
    fmr_seen: float | None = Field(description="False match rate measured when the rule was tested.")
    fmr_upper: float | None = Field(description="Upper confidence bound on that rate.")
    tested_on: str = Field(description="What the rule was tested on: whose pairs.")
    fmr_extrapolated: tuple[float, float] | None = Field(
        description="95 % interval of the rate where it is smaller than could be counted; else null."
    )
    left: Photo
    right: Photo
    notes: list[str] = Field(description="Further remarks, e.g. that a photo has several faces.")


class Member(BaseModel):
    """One photo of a template."""

    name: str
    kappa: float | None = Field(description="Kappa of its main face; null if there is none.")
    quality: int
    weight: float = Field(description="Share of the template's summed kappa, 0..1.")
    gain: float = Field(description="Decrease of the template's kappa without it.")
    helps: bool
    stranger: bool = Field(description="Whether it looks like a different person than most photos.")
    group: int = Field(
        description="Photos with the same number look like one person; 0 is the largest group."
    )
    same_as: str | None = Field(description="Name of an earlier photo with the same picture.")
    reason: str = Field(
        description="Why it has no usable face, or why it is a suspected stranger; else empty."
    )
    reasons: list[str] = Field(description="Capture problems.")
    ticket: str | None = Field(
        description="To send instead of the photo, as long as the service runs; null unless asked for."
    )


class Template(BaseModel):
    """Several photos pooled."""

    kappa: float | None = Field(description="Kappa of the pooled faces; null if there is no usable face.")
    grown: list[float] = Field(description="Kappa after each pooled photo, in the order sent.")
    groups: int = Field(description="Number of people that the faces look like.")
    pooled: list[str] = Field(description="Names of the pooled photos.")
    warnings: list[str]
    photos: list[Member]


class Candidate(BaseModel):
    """An enrolled person with a high score."""

    identity: str
    template: str = Field(description="Key of the template in the gallery.")
    score: float = Field(description="Mutual likelihood score.")
    cosine: float
    kappa: float = Field(description="Kappa of the template.")
    llr: float | None = Field(
        description="Natural log of the likelihood ratio, one person versus two people."
    )
    accept: float | None = Field(description="Match if the evidence, or the score, is at least this.")
    reject: float | None = Field(description="Non-match if it is below this.")
    evidence: float | None = Field(
        None, description="Evidence that knows both kappas; null: the score counts."
    )


class Identified(BaseModel):
    """The answer: an enrolled person, unknown, or undecided."""

    answer: Literal["identified", "unknown", "undecided"]
    identity: str | None = Field(description="Name, if identified.")
    reason: str
    candidates: list[Candidate] = Field(description="Highest score first.")
    max_fpir: float = Field(description="Guaranteed bound on the share of strangers that are identified.")
    gallery: int = Field(description="Number of enrolled identities.")
    fmr: float | None = Field(description="False match rate allowed for one comparison.")
    fmr_used: float | None = Field(description="False match rate of the threshold that was used.")
    min_kappa: float | None = Field(description="Undecided if the kappa of the photo is below this.")
    exact: bool = Field(description="Whether the search was exact.")
    scored: int = Field(description="Number of templates scored; the others provably score lower.")
    tested_on: str | None = Field(description="Whose pairs the rule was tested on; null without a rule.")
    photo: Photo


class Enrolled(BaseModel):
    """One enrolled person."""

    template: str = Field(description="Key of the template in the gallery.")
    identity: str
    kappa: float = Field(description="Kappa of the pooled template.")
    percentile: float | None
    images: int = Field(description="Number of photos in it.")
    media: int = Field(description="Number of photos, counting copies once.")
    warnings: list[str] = Field(description="E.g. low quality, or resemblance to another person.")
    sources: list[str] = Field(description="File names of the first photos.")
    enrolled: str = Field(description="Time (UTC).")
    changed: str = Field(description="Time (UTC).")


class Enrolments(BaseModel):
    """All enrolled people."""

    identities: list[Enrolled]


class GalleryInfo(BaseModel):
    """The gallery as a whole."""

    model: str = Field(description="Fingerprint of its model.")
    dim: int = Field(description="Dimension of the directions.")
    radius: float = Field(description="r of the scores.")
    created: str = Field(description="Time (UTC).")
    identities: int
    images: int = Field(description="Number of photos in all templates.")


class Removed(BaseModel):
    """Result of a removal."""

    identity: str
    removed: int = Field(description="Number of templates erased.")


class Fields(BaseModel):
    """Fields of a form; unknown ones are rejected."""

    model_config = ConfigDict(extra="forbid")


class CompareFields(Fields):
    """Fields of `compare` beside the photos."""

    max_fmr: float = Field(DEFAULT_MAX_FMR, gt=0, le=1, description="Maximum false match rate.")


class TemplateFields(Fields):
    """Fields of `template` beside the photos."""

    tickets: bool = Field(False, description="true to get a ticket for each photo.")


class IdentifyFields(Fields):
    """Fields of `identify` beside the photo."""

    top: int = Field(5, ge=1, le=100, description="Maximum number of candidates.")
    max_fpir: float = Field(0.01, gt=0, lt=1, description="Maximum share of strangers that are identified.")


class EnrolFields(Fields):
    """Fields of an enrolment beside the photos."""

    identity: str = Field(min_length=1, max_length=100, description="Name of the person.")
    consent: bool = Field(
        False, description="true if the person knows of the enrolment and has agreed to it."
    )
    replace: bool = Field(False, description="true to replace the person's enrolled photos.")


def form_body(fields: type[Fields], **photos: str) -> dict[str, Any]:
    """The OpenAPI description of a form: the fields of a model, and photos with descriptions.

    A field with a list of photos has a name that ends with s.
    """
    schema = {"properties": {}} | fields.model_json_schema()
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    files = {
        name: ({"type": "array", "items": file, "minItems": 1} if name.endswith("s") else file)
        | {"description": text}
        for name, text in photos.items()
    }
    schema["properties"] = files | schema["properties"]
    schema |= {"type": "object", "required": [*photos, *schema.get("required", [])]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request or its form is damaged."},
    401: {"model": Problem, "description": "The token is missing or wrong."},
    403: {"model": Problem, "description": "Asked by a page of another site."},
    408: {"model": Problem, "description": "The photos came too slowly."},
    413: {"model": Problem, "description": "Too large, or too many photos."},
    415: {"model": Problem, "description": "The body is no form (multipart/form-data)."},
    421: {"model": Problem, "description": "Asked under a host name that is not allowed."},
    422: {"model": Problem, "description": "A field is missing or out of range."},
    429: {"model": Problem, "description": "Too many requests; wait for Retry-After seconds."},
    503: {"model": Problem, "description": "The service is busy; wait for Retry-After seconds."},
}
GONE: dict[int | str, dict[str, Any]] = {
    410: {"model": Problem, "description": "A ticket is not of this service; send the photo."}
}
