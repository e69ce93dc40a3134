"""ONNX recognisers: read, repair, find embedding and feature map, convert to torch modules."""
