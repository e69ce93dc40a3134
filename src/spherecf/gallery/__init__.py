"""Who is this? People enrolled by their templates, searched exactly under the mutual likelihood score.

Works on directions and concentrations; it sees neither pictures nor models.
"""

from spherecf.gallery.gallery import Gallery
from spherecf.gallery.identification import Candidate, Identification
from spherecf.gallery.rows import Enrolled, checked_identity

__all__ = ["Candidate", "Enrolled", "Gallery", "Identification", "checked_identity"]
