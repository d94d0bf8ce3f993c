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


@dataclass(frozen=True)
class Successor(Published):
    """Errors of a method after METRO, as found where they could be read.

    Attributes:
        dpw_in_training: whether 3DPW's training set was trained on; None where the source does not say.
        training: what it was trained on and what is evaluated, as far as the source says.
        source: where the figures were read.
    """

    dpw_in_training: bool | None
    training: str
    source: str


_HYBRIK = "Li et al., HybrIK: A Hybrid Analytical-Neural Inverse Kinematics Solution for 3D Human Pose and Shape "
_HYBRIK += "Estimation, CVPR 2021"
_HYBRIK_README = "README of github.com/Jeff-sjtu/HybrIK, Results"
_PARE = "Kocabas et al., PARE: Part Attention Regressor for 3D Human Body Estimation, ICCV 2021"
_PARE_README = "README of github.com/mkocabas/PARE, Evaluation"
_MIXED = "Human3.6M, COCO, MUCO, UP3D and MPII, then fine-tuned on 3DPW for 3DPW; released checkpoints"

SUCCESSORS = (
    Successor(
        "PARE",
        _PARE,
        h36m_mpjpe_mm=None,
        h36m_pa_mpjpe_mm=None,
        dpw_mpvpe_mm=97.9,
        dpw_mpjpe_mm=82.0,
        dpw_pa_mpjpe_mm=50.9,
        dpw_in_training=False,
        training="not said there",
        source=_PARE_README,
    ),
    Successor(
        "PARE with 3DPW",
        _PARE,
        h36m_mpjpe_mm=None,
        h36m_pa_mpjpe_mm=None,
        dpw_mpvpe_mm=88.6,
        dpw_mpjpe_mm=74.5,
        dpw_pa_mpjpe_mm=46.5,
        dpw_in_training=True,
        training="the above and 3DPW",
        source=_PARE_README,
    ),
    Successor(
        "HybrIK (ResNet-34)",
        _HYBRIK,
        h36m_mpjpe_mm=None,
        h36m_pa_mpjpe_mm=34.5,
        dpw_mpvpe_mm=None,
        dpw_mpjpe_mm=None,
        dpw_pa_mpjpe_mm=48.8,
        dpw_in_training=False,
        training="not said there",
        source=_HYBRIK_README,
    ),
    Successor(
        "HybrIK (ResNet-34) with 3DPW",
        _HYBRIK,
        h36m_mpjpe_mm=None,
        h36m_pa_mpjpe_mm=36.3,
        dpw_mpvpe_mm=None,
        dpw_mpjpe_mm=None,
        dpw_pa_mpjpe_mm=45.3,
        dpw_in_training=True,
        training="the above and 3DPW",
        source=_HYBRIK_README,
    ),
    Successor(
        "Mesh Graphormer (HRNet-W64)",
        "Lin et al., Mesh Graphormer, ICCV 2021",
        h36m_mpjpe_mm=51.20,
        h36m_pa_mpjpe_mm=34.55,
        dpw_mpvpe_mm=87.57,
        dpw_mpjpe_mm=73.98,
        dpw_pa_mpjpe_mm=45.35,
        dpw_in_training=True,
        training=_MIXED,
        source="docs/EXP.md of github.com/microsoft/MeshGraphormer",
    ),
    Successor(
        "FastMETRO-L (HRNet-W64)",
        "Cho et al., Cross-Attention of Disentangled Modalities for 3D Human Mesh Recovery with Transformers, ECCV "
        "2022",
        h36m_mpjpe_mm=52.96,
        h36m_pa_mpjpe_mm=33.58,
        dpw_mpvpe_mm=82.95,
        dpw_mpjpe_mm=73.54,
        dpw_pa_mpjpe_mm=44.58,
        dpw_in_training=True,
        training=_MIXED,
        source="docs/EXP.md of the FastMETRO repository (github.com/postech-ami/FastMETRO)",
    ),
    Successor(
        "CLIFF (HRNet-W48)",
        "Li et al., CLIFF: Carrying Location Information in Full Frames into Human Pose and Shape Estimation, ECCV "
        "2022",
        h36m_mpjpe_mm=None,
        h36m_pa_mpjpe_mm=None,
        dpw_mpvpe_mm=81.2,
        dpw_mpjpe_mm=69.0,
        dpw_pa_mpjpe_mm=43.0,
        dpw_in_training=None,
        training="not said there",
        source="paperswithcode.com/paper/cliff-carrying-location-information-in-full; names of the checkpoints in the "
        "README of github.com/haofanwang/CLIFF",
    ),
    Successor(
        "TokenHMR",
        "Dwivedi et al., TokenHMR: Advancing Human Mesh Recovery with a Tokenized Pose Representation, CVPR 2024",
        h36m_mpjpe_mm=None,
        h36m_pa_mpjpe_mm=None,
        dpw_mpvpe_mm=84.3,
        dpw_mpjpe_mm=70.9,
        dpw_pa_mpjpe_mm=44.8,
        dpw_in_training=None,
        training="SD + ITW + BEDLAM, as the source names them; the paper's version",
        source="README of github.com/saidwivedi/TokenHMR, Model Zoo",
    ),
)
