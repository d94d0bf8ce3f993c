"""CUDA kernels and what launches them: pre- and postprocessing, smoothing and drawing without leaving the GPU.

Each module here is the GPU twin of a NumPy module and is tested against it; see docs/cuda.md. PyCUDA is loaded when a
kernel is first asked for, never by an import.
"""
