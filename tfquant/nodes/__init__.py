"""A quantized model as nodes of ONNX, written from our own integers."""
