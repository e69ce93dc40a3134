"""A confidence model as one ONNX file, for programs that know neither torch nor SphereCF."""

from spherecf.export._onnx import ExportReport, export_onnx
from spherecf.export._parity import TOLERANCE, Parity

__all__ = ["TOLERANCE", "ExportReport", "Parity", "export_onnx"]
