"""Results that the papers report: other data sets, other bodies, other test pictures than what we measure."""

from __future__ import annotations

from dataclasses import dataclass

COLLECTED_IN = (
    "K. Lin, L. Wang, Z. Liu, End-to-End Human Pose and Mesh Reconstruction with Transformers, CVPR 2021 "
    "(comparison with the state of the art on 3DPW and Human3.6M)"
)
PROTOCOLS = (
    "Human3.6M by protocol 2 (subjects 9 and 11, one camera); it has no test meshes, so there is no MPVPE. "
    "3DPW test set"
)


@dataclass(frozen=True)
class Published:
    """Errors of one method in mm, None where its paper and METRO's give none.

    Attributes:
        method: its name.
        paper: authors, title, venue.
        h36m_mpjpe_mm, h36m_pa_mpjpe_mm: on Human3.6M.
        dpw_mpvpe_mm, dpw_mpjpe_mm, dpw_pa_mpjpe_mm: on 3DPW.
    """

    method: str
    paper: str
    h36m_mpjpe_mm: float | None
    h36m_pa_mpjpe_mm: float | None
    dpw_mpvpe_mm: float | None
    dpw_mpjpe_mm: float | None
    dpw_pa_mpjpe_mm: float | None


PUBLISHED = (
    Published(
        "HMR",
        "Kanazawa et al., End-to-end Recovery of Human Shape and Pose, CVPR 2018",
        h36m_mpjpe_mm=88.0,
        h36m_pa_mpjpe_mm=56.8,
        dpw_mpvpe_mm=None,
        dpw_mpjpe_mm=None,
        dpw_pa_mpjpe_mm=81.3,
    ),
    Published(
        "GraphCMR",
        "Kolotouros et al., Convolutional Mesh Regression for Single-Image Human Shape Reconstruction, CVPR 2019",
        h36m_mpjpe_mm=None,
        h36m_pa_mpjpe_mm=50.1,
        dpw_mpvpe_mm=None,
        dpw_mpjpe_mm=None,
        dpw_pa_mpjpe_mm=70.2,
    ),
    Published(
        "SPIN",
        "Kolotouros et al., Learning to Reconstruct 3D Human Pose and Shape via Model-fitting in the Loop, ICCV 2019",
        h36m_mpjpe_mm=None,
        h36m_pa_mpjpe_mm=41.1,
        dpw_mpvpe_mm=116.4,
        dpw_mpjpe_mm=None,
        dpw_pa_mpjpe_mm=59.2,
    ),
    Published(
        "Pose2Mesh",
        "Choi et al., Pose2Mesh: Graph Convolutional Network for 3D Human Pose and Mesh Recovery from a 2D Human "
        "Pose, ECCV 2020",
        h36m_mpjpe_mm=64.9,
        h36m_pa_mpjpe_mm=47.0,
        dpw_mpvpe_mm=None,
        dpw_mpjpe_mm=89.2,
        dpw_pa_mpjpe_mm=58.9,
    ),
    Published(
        "I2LMeshNet",
        "Moon and Lee, I2L-MeshNet: Image-to-Lixel Prediction Network for Accurate 3D Human Pose and Mesh Estimation "
        "from a Single RGB Image, ECCV 2020",
        h36m_mpjpe_mm=55.7,
        h36m_pa_mpjpe_mm=41.1,
        dpw_mpvpe_mm=None,
        dpw_mpjpe_mm=93.2,
        dpw_pa_mpjpe_mm=57.7,
    ),
    Published(
        "VIBE",
        "Kocabas et al., VIBE: Video Inference for Human Body Pose and Shape Estimation, CVPR 2020",
        h36m_mpjpe_mm=65.6,
        h36m_pa_mpjpe_mm=41.4,
        dpw_mpvpe_mm=99.1,
        dpw_mpjpe_mm=82.0,
        dpw_pa_mpjpe_mm=51.9,
    ),
    Published(
        "METRO",
        "Lin et al., End-to-End Human Pose and Mesh Reconstruction with Transformers, CVPR 2021",
        h36m_mpjpe_mm=54.0,
        h36m_pa_mpjpe_mm=36.7,
        dpw_mpvpe_mm=88.2,
        dpw_mpjpe_mm=77.1,
        dpw_pa_mpjpe_mm=47.9,
    ),
)
