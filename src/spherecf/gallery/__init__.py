"""1:N identification: a gallery of enrolled templates, searched exactly by the mutual likelihood score.

The gallery works on directions and concentrations; it needs neither images nor models.
"""

from spherecf.gallery.gallery import Gallery
from spherecf.gallery.identification import Candidate as Candidate, Identification as Identification
from spherecf.gallery.milvus import migrate
from spherecf.gallery.review import (
    find_strangers as find_strangers,
    group_by_person as group_by_person,
    pooled as pooled,
    several_people as several_people,
)
from spherecf.gallery.rows import Enrolled as Enrolled, checked_identity as checked_identity
from spherecf.gallery.sealed import reseal_gallery as reseal_gallery

# Names imported `as` themselves are used by other packages of SphereCF; they are not public.
__all__ = ["Gallery", "migrate"]
