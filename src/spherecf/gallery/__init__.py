"""Who is this? People enrolled by their templates, searched exactly under the mutual likelihood score.

Works on directions and concentrations; it sees neither pictures nor models.
"""

from spherecf.gallery._enrolled import Enrolled
from spherecf.gallery._gallery import Gallery
from spherecf.gallery._identification import Candidate, Identification
from spherecf.gallery._names import checked_identity

__all__ = ["Candidate", "Enrolled", "Gallery", "Identification", "checked_identity"]
