"""Why a photo gives no face: one word for programs, one sentence for people."""

from enum import StrEnum

from spherecf.data import ImageError


class Failure(StrEnum):
    """Failure to acquire, by kind; the sentence beside it says what came and what to do."""

    UNREADABLE = "unreadable"
    """The file cannot be opened or read."""
    EMPTY = "empty"
    """There are no bytes."""
    NOT_AN_IMAGE = "not_an_image"
    """The bytes are of no picture format that is known here."""
    UNSUPPORTED = "unsupported"
    """A picture, but nothing installed decodes it."""
    TRUNCATED = "truncated"
    """A picture that stops early or is damaged."""
    TOO_LARGE = "too_large"
    """More pixels than the limit; not decoded."""
    NO_FACE = "no_face"
    """A sound picture in which no face was found."""
    TURNED = "turned"
    """The face stands on its head or lies on its side, and no tag of the file says so."""


class PhotoError(ImageError):
    """A photo that cannot be used; ``kind`` says why in one word."""

    def __init__(self, kind: Failure, where: str, problem: str, hint: str = "") -> None:
        super().__init__(where, problem, hint)
        self.kind = kind

    def __reduce__(self) -> tuple[type["PhotoError"], tuple[Failure, str, str, str]]:  # type: ignore[override]
        return type(self), (self.kind, self.where, self.problem, self.hint)
