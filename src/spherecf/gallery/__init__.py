"""Who is this? People enrolled by their templates, searched exactly under the mutual likelihood score.

Works on directions and concentrations; it sees neither pictures nor models.
"""

from spherecf.gallery._enrolled import Enrolled
from spherecf.gallery._gallery import Gallery
from spherecf.gallery._identification import Candidate, Identification

__all__ = ["Candidate", "Enrolled", "Gallery", "Identification"]
