"""Recognisers that stay as they are, and the confidence heads that look at them."""

from spherecf.models._backbone import BackboneOutput, FrozenBackbone
from spherecf.models._preprocessing import KNOWN_MODELS, PRESETS, KnownModel, Preprocessing

__all__ = [
    "KNOWN_MODELS",
    "PRESETS",
    "BackboneOutput",
    "FrozenBackbone",
    "KnownModel",
    "Preprocessing",
]
