"""FP32 graph -> INT8, FP8 or mixed graph: calibration, smoothing, Q/DQ, sensitivity and search in millimetres."""

from engines.quantize.calibrate import METHODS
from engines.quantize.layers import Layer, default_layers, quantisable
from engines.quantize.mixed import mixed
from engines.quantize.qdq import insert_qdq
from engines.quantize.recipe import DATA, METHOD, NEAREST, ROUNDINGS, quantise

__all__ = [
    "DATA",
    "METHOD",
    "METHODS",
    "NEAREST",
    "ROUNDINGS",
    "Layer",
    "default_layers",
    "insert_qdq",
    "mixed",
    "quantisable",
    "quantise",
]
