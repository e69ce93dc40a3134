"""Photos: find the faces, align them to the crop that recognisers expect, measure how they were taken."""

from spherecf.faces.acquisition import (
    Acquisition,
    AlignedFaces,
    CapturedFace as CapturedFace,
    IjbFaces,
    acquire,
)
from spherecf.faces.alignment import ARCFACE_POINTS, CaptureFacts as CaptureFacts, align
from spherecf.faces.detection import Face, FaceDetector, FacePoints as FacePoints
from spherecf.faces.photo import MAX_PIXELS as MAX_PIXELS, Failure as Failure, PhotoError, read_photo

# Names imported `as` themselves serve other rooms of this package; they are no part of its public interface.
__all__ = [
    "ARCFACE_POINTS",
    "Acquisition",
    "AlignedFaces",
    "Face",
    "FaceDetector",
    "IjbFaces",
    "PhotoError",
    "acquire",
    "align",
    "read_photo",
]
