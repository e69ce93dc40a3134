"""Photos: find the faces, align them to the crop that recognisers expect, say how they were taken."""

from spherecf.faces._acquire import Acquisition, CapturedFace, acquire
from spherecf.faces._align import ARCFACE_POINTS, align
from spherecf.faces._capture import CaptureFacts, capture_facts, head_pose
from spherecf.faces._detect import Face, FaceDetector
from spherecf.faces._failure import Failure, PhotoError
from spherecf.faces._find import FacePoints, find_faces
from spherecf.faces._ijb import IjbFaces
from spherecf.faces._photo import MAX_PIXELS, Photo, read_photo
from spherecf.faces._source import AlignedFaces

__all__ = [
    "ARCFACE_POINTS",
    "MAX_PIXELS",
    "Acquisition",
    "AlignedFaces",
    "CaptureFacts",
    "CapturedFace",
    "Face",
    "FaceDetector",
    "FacePoints",
    "Failure",
    "IjbFaces",
    "Photo",
    "PhotoError",
    "acquire",
    "align",
    "capture_facts",
    "find_faces",
    "head_pose",
    "read_photo",
]
