"""What is wrong with a data set: corrupt and double images, wrong labels, people who are in two sets."""

from spherecf.audit._check import check
from spherecf.audit._embed import embed_directions
from spherecf.audit._images import (
    Corrupt,
    DuplicateGroup,
    ImageScan,
    OddSize,
    find_corrupt,
    find_duplicates,
    find_odd_sizes,
    scan_images,
)
from spherecf.audit._overlap import IdentityPair, find_overlap, find_same_person, find_shared_names
from spherecf.audit._suspects import Suspect, Suspects, Thresholds, find_suspects

__all__ = [
    "Corrupt",
    "DuplicateGroup",
    "IdentityPair",
    "ImageScan",
    "OddSize",
    "Suspect",
    "Suspects",
    "Thresholds",
    "check",
    "embed_directions",
    "find_corrupt",
    "find_duplicates",
    "find_odd_sizes",
    "find_overlap",
    "find_same_person",
    "find_shared_names",
    "find_suspects",
    "scan_images",
]
