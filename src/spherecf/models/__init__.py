"""Recognisers that stay as they are, and the confidence heads that look at them."""

from spherecf.models._artefact import ConfidenceModel, ConfidentOutput, load, read_header
from spherecf.models._backbone import BackboneOutput, FrozenBackbone
from spherecf.models._default import default_detector_path, default_recogniser_path
from spherecf.models._heads import HEADS, ConfidenceHead, ConvHead, LinearHead, make_head
from spherecf.models._initial import initial_kappa
from spherecf.models._onnx_import import OnnxModule, import_onnx
from spherecf.models._preprocessing import KNOWN_MODELS, PRESETS, KnownModel, Preprocessing
from spherecf.models._prototypes import class_mean_prototypes, leave_one_out_prototypes, load_prototypes

__all__ = [
    "HEADS",
    "KNOWN_MODELS",
    "PRESETS",
    "BackboneOutput",
    "ConfidenceHead",
    "ConfidenceModel",
    "ConfidentOutput",
    "ConvHead",
    "FrozenBackbone",
    "KnownModel",
    "LinearHead",
    "OnnxModule",
    "Preprocessing",
    "class_mean_prototypes",
    "default_detector_path",
    "default_recogniser_path",
    "import_onnx",
    "initial_kappa",
    "leave_one_out_prototypes",
    "load",
    "load_prototypes",
    "make_head",
    "read_header",
]
