"""Check data sets: corrupt and duplicate images, wrong labels, people who are in two sets."""

from spherecf.audit.checks import check, embed_directions
from spherecf.audit.images import (
    Corrupt,
    DuplicateGroup,
    ImageScan,
    OddSize,
    find_corrupt,
    find_duplicates,
    find_odd_sizes,
    scan_images,
)
from spherecf.audit.labels import (
    IdentityPair,
    Suspect,
    Suspects,
    Thresholds,
    find_overlap,
    find_same_person,
    find_shared_names,
    find_suspects,
)

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
