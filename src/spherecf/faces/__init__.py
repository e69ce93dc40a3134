"""Photos: find the faces, align them to the crop that recognisers expect."""

from spherecf.faces._align import ARCFACE_POINTS, align
from spherecf.faces._detect import Face, FaceDetector
from spherecf.faces._ijb import IjbFaces
from spherecf.faces._source import AlignedFaces

__all__ = ["ARCFACE_POINTS", "AlignedFaces", "Face", "FaceDetector", "IjbFaces", "align"]
