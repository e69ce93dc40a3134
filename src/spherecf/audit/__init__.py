"""Check data sets: corrupt and duplicate images, wrong labels, and people who are in two sets."""

from spherecf.audit.checks import check, find_duplicates, scan_images
from spherecf.audit.labels import find_overlap, find_same_person, find_suspects

__all__ = ["check", "find_duplicates", "find_overlap", "find_same_person", "find_suspects", "scan_images"]
