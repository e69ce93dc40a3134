"""Photos in, decisions out: confidence of each face, comparison of two photos, templates and enrolment."""

from spherecf.photos.assessment import (
    AssessedFace,
    AssessedPhoto,
    FaceAssessor,
    PhotoSource,
    assess_files,
    explain,
    rank_photos,
    ranked_faces,
)
from spherecf.photos.comparison import Comparison, compare, rule_for
from spherecf.photos.enrolment import HowToEnrol, PhotoEnrolment, enrol_folders, enrol_photos, people_of
from spherecf.photos.files import PHOTO_SUFFIXES, Journal, PhotoFile, PhotoFiles, find_photos, printable
from spherecf.photos.outputs import (
    copy_photos,
    split_by_quality,
    write_csv,
    write_list,
    write_scores,
    write_sheet,
)
from spherecf.photos.template import PhotoTemplate, TemplatePhoto, build_template

__all__ = [
    "PHOTO_SUFFIXES",
    "AssessedFace",
    "AssessedPhoto",
    "Comparison",
    "FaceAssessor",
    "HowToEnrol",
    "Journal",
    "PhotoEnrolment",
    "PhotoFile",
    "PhotoFiles",
    "PhotoSource",
    "PhotoTemplate",
    "TemplatePhoto",
    "assess_files",
    "build_template",
    "compare",
    "copy_photos",
    "enrol_folders",
    "enrol_photos",
    "explain",
    "find_photos",
    "people_of",
    "printable",
    "rank_photos",
    "ranked_faces",
    "rule_for",
    "split_by_quality",
    "write_csv",
    "write_list",
    "write_scores",
    "write_sheet",
]
