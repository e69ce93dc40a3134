"""From photos to decisions: how sure, the same person or not, which pictures to keep."""

from spherecf.photos._assess import AssessedFace, AssessedPhoto, FaceAssessor, PhotoSource
from spherecf.photos._compare import Comparison, compare, rule_for
from spherecf.photos._enrol import HowToEnrol, PhotoEnrolment, enrol_folders, enrol_photos, people_of
from spherecf.photos._files import PHOTO_SUFFIXES, PhotoFile, PhotoFiles, find_photos, printable
from spherecf.photos._journal import Journal
from spherecf.photos._outputs import copy_photos, split_by_quality, write_csv, write_list, write_scores
from spherecf.photos._rank import assess_files, rank_photos, ranked_faces
from spherecf.photos._reasons import explain
from spherecf.photos._sheet import write_sheet
from spherecf.photos._template import PhotoTemplate, TemplatePhoto, build_template

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
