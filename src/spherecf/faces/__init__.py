"""Photos: find the faces, align them to the crop that recognisers expect, say how they were taken."""

from spherecf.faces.acquisition import Acquisition, AlignedFaces, CapturedFace, IjbFaces, acquire
from spherecf.faces.alignment import ARCFACE_POINTS, align
from spherecf.faces.capture import CaptureFacts, capture_facts, head_pose
from spherecf.faces.detection import Face, FaceDetector, FacePoints, find_faces
from spherecf.faces.photo import MAX_PIXELS, Failure, Photo, PhotoError, read_photo

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
