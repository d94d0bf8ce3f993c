"""Checkpoint -> ONNX -> simplified -> FP16 / INT8 -> verified bundle: `python -m engines convert`."""
