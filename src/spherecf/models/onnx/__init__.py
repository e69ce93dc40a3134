"""ONNX recognisers: read, repaired, searched for embedding and map, and turned into torch modules."""
