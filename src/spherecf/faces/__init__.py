"""From photos to aligned face crops: detection, alignment, and measurements of the capture conditions."""

from spherecf.faces.acquisition import (
    Acquisition as Acquisition,
    AlignedFaces,
    CapturedFace as CapturedFace,
    IjbFaces as IjbFaces,
    acquire,
)
from spherecf.faces.alignment import ARCFACE_POINTS, CaptureFacts as CaptureFacts, align
from spherecf.faces.detection import Face, FaceDetector, FacePoints as FacePoints
from spherecf.faces.photo import MAX_PIXELS as MAX_PIXELS, Failure as Failure, PhotoError, read_photo

# Names imported `as` themselves are used by other sub-packages; they are not part of the public interface.
__all__ = [
    "ARCFACE_POINTS",
    "AlignedFaces",
    "Face",
    "FaceDetector",
    "PhotoError",
    "acquire",
    "align",
    "read_photo",
]
