"""A model repository for NVIDIA Triton: the network, Python models around it, and ensembles of the whole."""

from __future__ import annotations

from metro_edge.triton.config import TritonOptions as TritonOptions
from metro_edge.triton.repository import export_triton as export_triton
