"""Recognisers that stay as they are, and the confidence heads that look at them."""

from spherecf.models._artefact import ConfidenceModel, ConfidentOutput, load, read_header
from spherecf.models._backbone import BackboneOutput, FrozenBackbone
from spherecf.models._checkpoint import SUFFIXES as CHECKPOINT_SUFFIXES
from spherecf.models._checkpoint import read_checkpoint
from spherecf.models._checkpoint_backbone import load_backbone
from spherecf.models._checkpoint_head import load_confidence_head, original_head_state
from spherecf.models._checkpoint_prototypes import load_prototypes
from spherecf.models._default import default_detector_path, default_model_path, default_recogniser_path
from spherecf.models._heads import HEADS, ConfidenceHead, ConvHead, LinearHead, make_head
from spherecf.models._initial import initial_kappa
from spherecf.models._network import Network
from spherecf.models._networks import NETWORKS, make_backbone
from spherecf.models._onnx_graph import INPUT_KEY as ONNX_INPUT_KEY
from spherecf.models._onnx_graph import opset_of
from spherecf.models._onnx_import import OnnxModule, import_onnx
from spherecf.models._onnx_trace import trace_onnx
from spherecf.models._preprocessing import KNOWN_MODELS, PRESETS, KnownModel, Preprocessing
from spherecf.models._preprocessing import METADATA_KEY as PREPROCESSING_KEY
from spherecf.models._prototypes import class_mean_prototypes, leave_one_out_prototypes
from spherecf.models._trained import load_trained, prototype_identities, save_backbone, save_prototypes

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
    "initial_kappa",
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
    "read_checkpoint",
    "prototype_identities",
    "read_header",
    "save_backbone",
    "save_prototypes",
    "trace_onnx",
]
