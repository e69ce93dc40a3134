"""Photos: find the faces, align them to the crop that recognisers expect, measure how they were taken."""

from spherecf.faces.acquisition import Acquisition, AlignedFaces, IjbFaces, acquire
from spherecf.faces.acquisition import CapturedFace as CapturedFace
from spherecf.faces.alignment import ARCFACE_POINTS, align
from spherecf.faces.capture import CaptureFacts as CaptureFacts
from spherecf.faces.detection import Face, FaceDetector
from spherecf.faces.detection import FacePoints as FacePoints
from spherecf.faces.photo import MAX_PIXELS as MAX_PIXELS
from spherecf.faces.photo import Failure as Failure
from spherecf.faces.photo import PhotoError, read_photo

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
