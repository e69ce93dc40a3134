"""1:N identification: enrolled templates, searched exactly by the mutual likelihood score.

It works on directions and concentrations; it uses neither images nor models.
"""

from spherecf.gallery.gallery import Gallery
from spherecf.gallery.identification import Candidate, Identification
from spherecf.gallery.milvus import migrate
from spherecf.gallery.rows import Enrolled, checked_identity as checked_identity
from spherecf.gallery.sealed import reseal_gallery as reseal_gallery

# Names imported `as` themselves serve other rooms of this package; they are no part of its public interface.
__all__ = [
    "Candidate",
    "Enrolled",
    "Gallery",
    "Identification",
    "migrate",
]
