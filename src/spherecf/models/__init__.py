"""Frozen recognisers, and the confidence heads that run on their feature maps."""

from spherecf.models.arithmetic import float32_arithmetic as float32_arithmetic
from spherecf.models.backbone import BackboneOutput as BackboneOutput, FrozenBackbone
from spherecf.models.centring import Centring
from spherecf.models.checkpoint import (
    CHECKPOINT_SUFFIXES as CHECKPOINT_SUFFIXES,
    read_checkpoint,
    without_memory as without_memory,
)
from spherecf.models.heads import HEADS, ConfidenceHead, make_head
from spherecf.models.model import ConfidenceModel, load as load, load_confidence_head, original_head_state
from spherecf.models.network import Network as Network
from spherecf.models.networks import NETWORKS, make_backbone
from spherecf.models.onnx.graph import ONNX_INPUT_KEY as ONNX_INPUT_KEY, opset_of as opset_of
from spherecf.models.onnx.module import import_onnx, trace_onnx as trace_onnx
from spherecf.models.preprocessing import (
    PREPROCESSING_KEY as PREPROCESSING_KEY,
    PRESETS,
    Preprocessing,
    default_detector_path as default_detector_path,
)
from spherecf.models.published import load_backbone, load_prototypes
from spherecf.models.quality import RecogniserQuality as RecogniserQuality
from spherecf.models.saved import (
    prototype_identities as prototype_identities,
    save_backbone,
    save_prototypes as save_prototypes,
)

# Names imported `as` themselves are used by other subpackages; they are not part of the public interface.
__all__ = [
    "HEADS",
    "NETWORKS",
    "PRESETS",
    "Centring",
    "ConfidenceHead",
    "ConfidenceModel",
    "FrozenBackbone",
    "Preprocessing",
    "import_onnx",
    "load_backbone",
    "load_confidence_head",
    "load_prototypes",
    "make_backbone",
    "make_head",
    "original_head_state",
    "read_checkpoint",
    "save_backbone",
]
