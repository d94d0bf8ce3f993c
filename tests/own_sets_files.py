"""Small made 3DPW and Human3.6M folders in the data sets' own file formats, since the real ones may not be passed on.

    truth = write_3dpw(folder, smpl_folder)       # two sequences of split test: one person, two people
    truth = write_human36m(folder)                # S9: two actions, S11: one, two cameras, videos of 14 frames

Both return what went in, for comparison. Pictures are flat grey of level `grey(frame)`, so that a frame can be told.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.smpl_files import python2_pickle

WIDTH, HEIGHT = 320, 240
FRAMES_3DPW, FRAMES_H36M = 5, 12
CAMERAS = ("54138969", "55011271", "58860488", "60457274")


def grey(frame: int) -> int:
    """Level of all pixels of picture `frame`."""
    return 20 + 15 * frame


# --- 3DPW ----------------------------------------------------------------------------------------------------------


def sequence_values(body: Any, people: int, seed: int = 0, genders: Any = None) -> dict[str, Any]:
    """The dictionary of a 3DPW sequence whose people stand about 4 m before a moving camera, in view of it.

    Args:
        body: SkinnedBody that `jointPositions` is made with.
    """
    rng = np.random.default_rng(seed)
    frames = FRAMES_3DPW
    cameras = np.tile(np.eye(4), (frames, 1, 1))
    poses, betas, trans, joints, found = [], [], [], [], []
    for f in range(frames):
        # The room has y up; the camera has y down and turns a little from frame to frame.
        cameras[f, :3, :3] = cv2.Rodrigues(np.array([np.pi, 0, 0]) + rng.normal(scale=0.05, size=3))[0]
        cameras[f, :3, 3] = (0.1 * f, 0.3, 4.0)
    for p in range(people):
        poses.append(rng.normal(scale=0.2, size=(frames, 72)))
        betas.append(rng.normal(scale=0.5, size=10))
        trans.append(np.array((0.8 * p - 0.4, 0.1, 0.2)) + rng.normal(scale=0.02, size=(frames, 3)))
        rest = body.joints(poses[p], np.tile(betas[p], (frames, 1)))
        joints.append((rest + trans[p][:, None]).reshape(frames, 72))
        found.append(np.concatenate((rng.uniform(50, 200, (frames, 2, 18)), np.ones((frames, 1, 18))), 1))
    return {
        "sequence": f"made_walk_{seed:02d}",
        "poses": poses,
        "betas": betas,
        "trans": trans,
        "jointPositions": joints,
        "poses2d": found,
        "genders": ["mf"[p % 2] for p in range(people)] if genders is None else genders,
        "campose_valid": [np.ones(frames, np.int64) for _ in range(people)],
        "cam_poses": cameras,
        "cam_intrinsics": np.array([[300.0, 0, 160], [0, 305.0, 120], [0, 0, 1]]),
        "img_frame_ids": 2 * np.arange(frames),
        "texture_maps": [],
    }


def write_sequence(folder: Path, values: dict[str, Any], split: str = "test", name: str = "") -> Path:
    """Write a sequence's pickle, as Python 2 did, and its pictures; returns the pickle's path."""
    name = name or values["sequence"]
    path = Path(folder) / "sequenceFiles" / split / f"{name}.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(python2_pickle(values))
    pictures = Path(folder) / "imageFiles" / name
    pictures.mkdir(parents=True, exist_ok=True)
    for f in range(FRAMES_3DPW):
        cv2.imwrite(str(pictures / f"image_{f:05d}.jpg"), np.full((HEIGHT, WIDTH, 3), grey(f), np.uint8))
    return path


def write_3dpw(folder: Path, body: Any, split: str = "test") -> list[dict[str, Any]]:
    """Write two sequences, of one person and of two; returns their dictionaries in order of file name."""
    sequences = [sequence_values(body, people=1, seed=1), sequence_values(body, people=2, seed=2)]
    for values in sequences:
        write_sequence(folder, values, split)
    return sequences


# --- Human3.6M -----------------------------------------------------------------------------------------------------


def write_human36m(
    folder: Path,
    kinds: tuple[str, ...] = ("D3_Positions_mono",),
    views: tuple[str, ...] = (CAMERAS[0], CAMERAS[3]),
    seed: int = 0,
) -> dict[str, Any]:
    """Write subjects 9 and 11 and metadata.xml.

    Args:
        kinds: of D3_Positions_mono, D3_Positions, D2_Positions, which pose folders there are.
        views: cameras that there are videos and pose files of.

    Returns:
        "S9/Directions 1" -> (frames, 32, 3) mm in the room, and "cameras" -> {(subject, camera): dict of numbers}.
    """
    rng = np.random.default_rng(seed)
    cameras = {(s, c): _camera(rng) for s in range(1, 12) for c in CAMERAS}
    for c in CAMERAS:  # the lens is the same for all subjects
        for s in range(2, 12):
            cameras[s, c]["lens"] = cameras[1, c]["lens"]
    write_metadata(Path(folder) / "metadata.xml", cameras)
    truth: dict[str, Any] = {"cameras": cameras}
    for subject, actions in ((9, ("Directions 1", "Walking")), (11, ("_ALL", "Sitting 2"))):
        for action in actions:
            poses = rng.uniform(-400, 400, (FRAMES_H36M, 32, 3)) + np.array((0, 0, 900))
            poses[:, [16, 24]], poses[:, 11] = poses[:, 13:14], poses[:, 0]  # rows that repeat others in the real data
            truth[f"S{subject}/{action}"] = poses = poses.astype(np.float32)
            home = Path(folder) / f"S{subject}"
            if "D3_Positions" in kinds:
                write_cdf(home / "MyPoseFeatures/D3_Positions" / f"{action}.cdf", poses)
            for c in views:
                local = room_to_camera(cameras[subject, c], poses)
                if "D3_Positions_mono" in kinds:
                    write_cdf(home / "MyPoseFeatures/D3_Positions_mono" / f"{action}.{c}.cdf", local)
                if "D2_Positions" in kinds:
                    flat = pinhole_with_lens(cameras[subject, c], local)
                    write_cdf(home / "MyPoseFeatures/D2_Positions" / f"{action}.{c}.cdf", flat)
                write_video(home / "Videos" / f"{action}.{c}.mp4", FRAMES_H36M + 2)  # real videos are longer, too
    return truth


def _camera(rng: np.random.Generator) -> dict[str, np.ndarray]:
    angles = np.array((-1.7, 0.1, 0.2)) + rng.normal(scale=0.1, size=3)
    rotation = rotation_of(angles)
    return {
        "angles": angles,
        "position": np.array((0, 0, 900.0)) - rotation.T @ (0, 0, 4500.0),
        "lens": np.array((230, 231, 100, 101, -0.2, 0.24, -0.002, -0.0009, -0.0014)) * rng.uniform(0.98, 1.02, 9),
    }


def rotation_of(angles: np.ndarray) -> np.ndarray:
    """Rx Ry Rz, written out."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


def room_to_camera(camera: dict[str, np.ndarray], points: np.ndarray) -> np.ndarray:
    """(..., 3) mm."""
    return np.einsum("ij,...j->...i", rotation_of(camera["angles"]), points - camera["position"])


def pinhole_with_lens(camera: dict[str, np.ndarray], points: np.ndarray) -> np.ndarray:
    """(..., 2) px by the data set's lens model, written out."""
    fx, fy, cx, cy, k1, k2, k3, p1, p2 = camera["lens"]
    x, y = points[..., 0] / points[..., 2], points[..., 1] / points[..., 2]
    r2 = x * x + y * y
    bend = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3 + p1 * y + p2 * x
    return np.stack((fx * (x * bend + p2 * r2) + cx, fy * (y * bend + p1 * r2) + cy), -1)


def write_metadata(path: Path, cameras: dict[tuple[int, str], dict[str, np.ndarray]]) -> None:
    """Write metadata.xml with the parts that matter: the cameras' names and the 300 numbers."""
    outer = [
        np.concatenate((cameras[s, c]["angles"], cameras[s, c]["position"])) for c in CAMERAS for s in range(1, 12)
    ]
    numbers = np.concatenate((*outer, *(cameras[1, c]["lens"] for c in CAMERAS)))
    names = "".join(f"<id>{c}</id>" for c in CAMERAS)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<database><dbcameras><index2id>{names}</index2id></dbcameras>"
        f"<w0>[{' '.join(repr(float(n)) for n in numbers)}]</w0></database>"
    )


def write_cdf(path: Path, values: np.ndarray, name: str = "Pose") -> Path:
    """Write (frames, 32, D) as Human3.6M's .cdf: one record of frames x (32 D) floats."""
    from cdflib.cdfwrite import CDF

    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    flat = np.asarray(values, np.float32).reshape(len(values), -1)
    file = CDF(path, cdf_spec={"Majority": "row_major"})
    shape = {
        "Variable": name,
        "Data_Type": file.CDF_FLOAT,
        "Num_Elements": 1,
        "Rec_Vary": True,
        "Var_Type": "zVariable",
    }
    file.write_var({**shape, "Dim_Sizes": list(flat.shape)}, var_data=flat[None])
    file.close()
    return path


def write_video(path: Path, frames: int, size: int = 200) -> Path:
    """Write an .mp4 of flat grey frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 50, (size, size))
    for f in range(frames):
        writer.write(np.full((size, size, 3), min(grey(f), 250), np.uint8))
    writer.release()
    return path
