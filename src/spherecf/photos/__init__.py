"""Work on whole photos: assess faces, compare two photos, build templates, enrol people."""

from spherecf.photos.assessment import (
    AssessedFace as AssessedFace,
    AssessedPhoto as AssessedPhoto,
    FaceAssessor,
    assess_files as assess_files,
    rank_photos,
    ranked_faces as ranked_faces,
)
from spherecf.photos.comparison import Comparison as Comparison, compare, rule_for as rule_for
from spherecf.photos.enrolment import (
    HowToEnrol as HowToEnrol,
    PhotoEnrolment as PhotoEnrolment,
    enrol_folders,
    enrol_photos,
    people_of as people_of,
)
from spherecf.photos.files import (
    PHOTO_SUFFIXES as PHOTO_SUFFIXES,
    PhotoFiles as PhotoFiles,
    find_photos,
    printable as printable,
)
from spherecf.photos.outputs import (
    check_outside as check_outside,
    copy_photos as copy_photos,
    split_by_quality as split_by_quality,
    write_csv as write_csv,
    write_list as write_list,
    write_scores as write_scores,
    write_sheet as write_sheet,
)
from spherecf.photos.template import (
    PhotoTemplate as PhotoTemplate,
    TemplatePhoto as TemplatePhoto,
    build_template,
)

# Names imported `as` themselves are used by the commands and the service; they are not public.
__all__ = [
    "FaceAssessor",
    "build_template",
    "compare",
    "enrol_folders",
    "enrol_photos",
    "find_photos",
    "rank_photos",
]
