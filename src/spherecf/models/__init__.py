"""Recognisers that stay as they are, and the confidence heads that look at them."""

from spherecf.models.backbone import BackboneOutput, FrozenBackbone
from spherecf.models.checkpoint import CHECKPOINT_SUFFIXES as CHECKPOINT_SUFFIXES
from spherecf.models.checkpoint import read_checkpoint
from spherecf.models.heads import HEADS, ConfidenceHead, ConvHead, LinearHead, make_head
from spherecf.models.model import (
    ConfidenceModel,
    ConfidentOutput,
    load,
    load_confidence_head,
    original_head_state,
    read_header,
)
from spherecf.models.network import Network
from spherecf.models.networks import NETWORKS, make_backbone
from spherecf.models.onnx.graph import ONNX_INPUT_KEY as ONNX_INPUT_KEY
from spherecf.models.onnx.graph import opset_of
from spherecf.models.onnx.module import OnnxModule, import_onnx, trace_onnx
from spherecf.models.preprocessing import (
    KNOWN_MODELS,
    PRESETS,
    KnownModel,
    Preprocessing,
    default_detector_path,
    default_model_path,
    default_recogniser_path,
)
from spherecf.models.preprocessing import PREPROCESSING_KEY as PREPROCESSING_KEY
from spherecf.models.published import (
    class_mean_prototypes,
    leave_one_out_prototypes,
    load_backbone,
    load_prototypes,
)
from spherecf.models.saved import load_trained, prototype_identities, save_backbone, save_prototypes

__all__ = [
    "CHECKPOINT_SUFFIXES",
    "HEADS",
    "KNOWN_MODELS",
    "NETWORKS",
    "ONNX_INPUT_KEY",
    "PREPROCESSING_KEY",
    "PRESETS",
    "BackboneOutput",
    "ConfidenceHead",
    "ConfidenceModel",
    "ConfidentOutput",
    "ConvHead",
    "FrozenBackbone",
    "KnownModel",
    "LinearHead",
    "Network",
    "OnnxModule",
    "Preprocessing",
    "class_mean_prototypes",
    "default_detector_path",
    "default_model_path",
    "default_recogniser_path",
    "import_onnx",
    "leave_one_out_prototypes",
    "load",
    "load_backbone",
    "load_confidence_head",
    "load_prototypes",
    "load_trained",
    "make_backbone",
    "make_head",
    "opset_of",
    "original_head_state",
    "prototype_identities",
    "read_checkpoint",
    "read_header",
    "save_backbone",
    "save_prototypes",
    "trace_onnx",
]
