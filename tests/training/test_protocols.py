"""Protocols against errors worked out by hand, on small made sets; FreiHAND's files; what the command prints."""

from __future__ import annotations

import argparse
import base64
import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from metro_edge.bundle import shipped_bundle_path
from metro_edge.errors import UserError
from metro_edge.joints import FREIHAND21, H36M14, H36M17
from metro_edge.metrics import procrustes
from metro_edge.spec import CROP_RULES, ModelSpec
from metro_edge.template import BodyTemplate, SparseMatrix
from tests.smpl_files import metro_folder, write_smpl
from training.__main__ import main
from training.bodies.smpl import template_from_folder
from training.commands import evaluate as command
from training.data.freihand import FreiHand, write_submission
from training.data.labelled import BadSampleError, LabelledPicture, LabelledSet
from training.data.protocol_sets import open_protocol_set
from training.data.tsv import write_tsv
from training.networks import open_network
from training.protocol_run import moved_mm, protocol_report, protocol_table, run_protocol
from training.protocols import CROP_RULE_WORDS, PROTOCOLS, protocol
from training.tta import TestTimeViews

VERTICES = 60


def made_template(name: str) -> BodyTemplate:
    """A cloud of points with random regressors whose rows sum to one."""
    rng = np.random.default_rng(3)
    count = 778 if name == "mano" else VERTICES
    sets = (FREIHAND21,) if name == "mano" else (H36M14, H36M17)

    def regressor(rows: int) -> SparseMatrix:
        indices = np.stack([rng.choice(count, 5, replace=False) for _ in range(rows)]).astype(np.int32)
        return SparseMatrix(indices, rng.dirichlet(np.ones(5), rows).astype(np.float32))

    everything = np.arange(count, dtype=np.int32)
    vertices = rng.normal(0, 0.3, (count, 3)).astype(np.float32)
    return BodyTemplate(
        name, vertices, np.zeros((0, 3), np.int32), (everything,), (np.zeros((0, 3), np.int32),), (),
        {s.name: regressor(len(s)) for s in sets},
    )  # fmt: skip


TEMPLATES = {name: made_template(name) for name in ("anny", "smpl", "mano")}


def spec_of(body: str, rule: str = "metro_eval") -> ModelSpec:
    joints = "freihand21" if body == "mano" else "h36m14"
    return ModelSpec("made", 32, joints, body, len(TEMPLATES[body].vertices), crop_rule=rule)


class MadeSet(LabelledSet):
    """Plain pictures, whose grey level tells the sample, with random labels."""

    def __init__(self, body: str, count: int = 7, bad: tuple[int, ...] = ()) -> None:
        super().__init__(count, spec_of(body))
        self.template, self.bad, rng = TEMPLATES[body], bad, np.random.default_rng(5)
        shape = (count, *self.template.vertices.shape)
        self.meshes = (self.template.vertices + rng.normal(0, 0.1, shape)).astype(np.float32)
        joints = self.template.joints(self.spec.joint_set, self.meshes)
        self.labels = np.concatenate([joints + rng.normal(0, 0.02, joints.shape), np.ones_like(joints[..., :1])], 2)
        self.without: dict[int, str] = {}

    def picture(self, index: int) -> LabelledPicture:
        if index in self.bad:
            raise BadSampleError(f"made.tsv:{index}: the picture does not decode")
        bare = self.without.get(index, "")
        return LabelledPicture(
            f"made.tsv:{index}",
            np.full((40, 40, 3), 20 + 5 * index, np.uint8),
            np.array([19.5, 19.5]),
            30.0,
            joints=None if bare == "joints" else self.labels[index].astype(np.float32),
            vertices=None if bare == "vertices" else self.meshes[index],
        )


def network_of(people: MadeSet) -> tuple[Any, np.ndarray]:
    """A prediction that depends on the picture it is given alone, and what it gives for each sample."""
    rng = np.random.default_rng(8)
    answers = (people.meshes * 1.05 + rng.normal(0, 0.03, people.meshes.shape) + (0.1, 0.2, 3.0)).astype(np.float32)

    def predict(images: np.ndarray) -> np.ndarray:
        mean, std = people.spec.mean[0], people.spec.std[0]
        levels = (images[:, 0, 16, 16] * std + mean) * 255
        return answers[np.rint((levels - 20) / 5).astype(int)]

    return predict, answers


def distance_mm(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b, axis=-1).mean(-1).mean() * 1000)


def by_hand(name: str, people: MadeSet, answers: np.ndarray, rows: list[int]) -> dict[str, float]:
    """MPJPE, PA-MPJPE and MPVPE of a body protocol, from its words and nothing of training.protocols."""
    template = people.template
    truth, ours = people.meshes[rows].astype(np.float64), answers[rows].astype(np.float64)
    joints = template.joints("h36m14", ours)
    labels = template.joints("h36m14", truth) if name in ("generated", "up3d") else people.labels[rows, :, :3]

    def hips(points: np.ndarray) -> np.ndarray:
        return points[:, 2:4].mean(1, keepdims=True)

    if name == "generated":
        roots = [hips(template.joints("h36m14", v)) for v in (ours, truth)]
    else:
        roots = [template.joints("h36m17", v)[:, :1] for v in (ours, truth)]
    return {
        "mpjpe": distance_mm(joints - hips(joints), labels - hips(labels)),
        "pa_mpjpe": distance_mm(procrustes(joints, labels), labels),
        "mpvpe": distance_mm(ours - roots[0], truth - roots[1]),
    }


@pytest.mark.parametrize("name", ["generated", "human36m-p2", "3dpw-neutral", "3dpw-gendered", "up3d"])
def test_body_protocols_give_the_errors_of_their_words(name: str) -> None:
    people = MadeSet("anny" if name == "generated" else "smpl")
    predict, answers = network_of(people)
    # Batches of 3 from 7 samples: the last part must weigh by its one sample.
    result = run_protocol(protocol(name), predict, people, people.template, batch_size=3)["metro_eval"]
    expected = by_hand(name, people, answers, list(range(7)))
    means = result.means()
    if name == "human36m-p2":
        assert means.pop("mpvpe") is None and expected.pop("mpvpe") > 0
    assert result.samples == 7
    assert means == pytest.approx(expected, rel=1e-5)


def test_samples_without_a_label_do_not_count_and_a_joint_without_one_takes_its_sample_out() -> None:
    people = MadeSet("smpl")
    predict, answers = network_of(people)
    people.without = {2: "joints", 4: "vertices"}
    people.labels[5, 0, 3] = 0.0
    errors = run_protocol(protocol("3dpw-neutral"), predict, people, people.template)["metro_eval"].errors
    assert {name: len(values) for name, values in errors.items()} == {"mpjpe": 5, "pa_mpjpe": 5, "mpvpe": 6}
    joints = by_hand("3dpw-neutral", people, answers, [0, 1, 3, 4, 6])
    assert errors["mpjpe"].mean() * 1000 == pytest.approx(joints["mpjpe"], rel=1e-5)
    meshes = by_hand("3dpw-neutral", people, answers, [0, 1, 2, 3, 5, 6])
    assert errors["mpvpe"].mean() * 1000 == pytest.approx(meshes["mpvpe"], rel=1e-5)


def test_bad_samples_stop_the_run_or_are_left_out_and_named() -> None:
    people = MadeSet("smpl", bad=(0, 3, 4))
    predict, answers = network_of(people)
    with pytest.raises(UserError, match=r"made\.tsv:0: the picture does not decode"):
        run_protocol(protocol("3dpw-neutral"), predict, people, people.template)
    runs = run_protocol(protocol("3dpw-neutral"), predict, people, people.template, batch_size=2, skip_bad=True)
    result = runs["metro_eval"]
    assert [text.split(":")[1] for text in result.skipped] == ["0", "3", "4"] and result.samples == 4
    assert result.means() == pytest.approx(by_hand("3dpw-neutral", people, answers, [1, 2, 5, 6]), rel=1e-5)
    text = protocol_table(protocol_report(runs))
    assert "metro_eval: 3 bad samples left out" in text
    with pytest.raises(UserError, match=r"no usable sample to evaluate on: 2 were bad; the first: made\.tsv:0"):
        run_protocol(
            protocol("3dpw-neutral"), predict, MadeSet("smpl", 2, (0, 1)), people.template, skip_bad=True
        )  # fmt: skip


def test_several_crop_rules_are_rows_of_one_table() -> None:
    people = MadeSet("smpl")
    predict, _ = network_of(people)
    rules = ["metro_eval", "box_area", "metro_demo"]
    runs = run_protocol(protocol("human36m-p2"), predict, people, people.template, rules=rules, count=5, keep=True)
    assert list(runs) == rules and all(run.samples == 5 for run in runs.values())
    # Pictures of one colour look alike whatever the rule.
    assert moved_mm(runs["metro_eval"], runs["metro_demo"]) == 0
    assert moved_mm(runs["metro_eval"], dataclasses.replace(runs["box_area"], vertices=runs["box_area"].vertices + 1)) \
        == pytest.approx(np.sqrt(3) * 1000)  # fmt: skip
    report = protocol_report(runs, run={"network": "made"})
    assert json.loads(json.dumps(report)) == report
    report["rows"][1]["moved_mm"] = 1.5
    text = protocol_table(report)
    for words in (
        "MPVPE undefined: the data set has no true meshes", "every 5th frame", "network: made", "| 1.50 |",
        "crop: square of 200 px x scale", "crop rule metro_eval: METRO's own", "crop rule box_area: up to 4 x 4",
    ):  # fmt: skip
        assert words in text
    assert text.count("undefined |") == 3


def test_every_protocol_prints_its_choices() -> None:
    for name, one in PROTOCOLS.items():
        text = "\n".join(one.lines())
        assert one.name == name
        for what in ("pictures: ", "joints: ", "root: ", "alignment: ", "gender", "crop: ", "means: over samples"):
            assert what in text, (name, what)
    assert tuple(PROTOCOLS) == command.PROTOCOL_NAMES
    assert tuple(CROP_RULE_WORDS) == CROP_RULES
    assert "1.44 times" in PROTOCOLS["3dpw-neutral"].square and "180 px" in PROTOCOLS["freihand"].square


def test_what_does_not_fit_a_protocol_is_refused() -> None:
    people = MadeSet("smpl")
    predict, _ = network_of(people)
    with pytest.raises(UserError, match="unknown protocol 'coco'"):
        protocol("coco")
    with pytest.raises(UserError, match="protocol freihand is for mano with joints freihand21; network 'made'"):
        run_protocol(protocol("freihand"), predict, people, people.template)
    with pytest.raises(UserError, match="has 7 samples, cannot take 8"):
        run_protocol(protocol("3dpw-neutral"), predict, people, people.template, count=8)
    people.without = dict.fromkeys(range(7), "vertices")
    with pytest.raises(UserError, match="no sample of the set has the labels for MPVPE mm of protocol 3dpw-neutral"):
        run_protocol(protocol("3dpw-neutral"), predict, people, people.template)


def freihand_folder(folder: Path, people: MadeSet, labels: bool = True) -> Path:
    pictures = folder / "evaluation" / "rgb"
    pictures.mkdir(parents=True)
    for i in range(len(people)):
        cv2.imwrite(str(pictures / f"{i:08d}.jpg"), np.full((224, 224, 3), 20 + 5 * i, np.uint8))
    if labels:
        away = np.array([0.1, -0.2, 0.7])
        xyz = people.template.joints("freihand21", people.meshes) + away
        (folder / "evaluation_xyz.json").write_text(json.dumps(xyz.tolist()))
        (folder / "evaluation_verts.json").write_text(json.dumps((people.meshes + away).tolist()))
    return folder


def test_freihands_folder_is_scored_after_alignment_and_its_submission_is_what_it_wants(tmp_path: Path) -> None:
    people = MadeSet("mano", 4)
    predict, answers = network_of(people)
    folder = freihand_folder(tmp_path / "freihand", people)
    spec, template = people.spec, people.template
    opened, used = open_protocol_set(protocol("freihand"), folder, spec, template)
    result = run_protocol(used, predict, opened, template, keep=True)["metro_eval"]
    means = result.means()
    truth = people.meshes.astype(np.float64)
    assert means["pa_mpvpe"] == pytest.approx(distance_mm(procrustes(answers, truth), truth), rel=1e-4)
    joints, true_joints = (template.joints("freihand21", v) for v in (answers, truth))
    assert means["pa_mpjpe"] == pytest.approx(distance_mm(procrustes(joints, true_joints), true_joints), rel=1e-4)
    distances = np.linalg.norm(procrustes(answers, truth)[:, :, None] - truth[:, None], axis=-1)
    close = [distances.min(axis) < 0.015 for axis in (1, 2)]
    recall, precision = (hit.mean(1) for hit in close)
    assert means["f_15mm"] == pytest.approx((2 * precision * recall / (precision + recall)).mean(), abs=1e-6)

    path = write_submission(tmp_path / "pred.zip", result.joints, result.vertices, count=4)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["pred.json"]
        xyz, vertices = json.loads(archive.read("pred.json"))
    assert np.shape(xyz) == (4, 21, 3) and np.shape(vertices) == (4, 778, 3)
    centred = answers - template.joints("freihand21", answers)[:, :1]
    np.testing.assert_allclose(vertices, centred, atol=2e-6)  # in image order, about the wrist
    np.testing.assert_allclose(xyz, template.joints("freihand21", centred), atol=2e-6)


def test_freihand_without_true_labels_has_no_scores(tmp_path: Path) -> None:
    people = MadeSet("mano", 3)
    predict, _ = network_of(people)
    folder = freihand_folder(tmp_path / "freihand", people, labels=False)
    opened, used = open_protocol_set(protocol("freihand"), folder, people.spec, people.template)
    means = run_protocol(used, predict, opened, people.template)["metro_eval"].means()
    assert set(means.values()) == {None} and "placeholders" in "\n".join(used.lines())


def test_bad_freihand_files(tmp_path: Path) -> None:
    people = MadeSet("mano", 3)
    spec, template, one = people.spec, people.template, protocol("freihand")
    with pytest.raises(UserError, match="neither evaluation/rgb nor"):
        open_protocol_set(one, tmp_path, spec, template)
    with pytest.raises(UserError, match="no pictures"):
        FreiHand(tmp_path, spec)
    folder = freihand_folder(tmp_path / "freihand", people)
    with pytest.raises(UserError, match="--skip-bad cannot be used"):
        open_protocol_set(one, folder, spec, template, skip_bad=True)
    (folder / "evaluation_xyz.json").write_text("[[1, 2, 3]]")
    with pytest.raises(UserError, match=r"evaluation_xyz\.json must hold 3 finite lists of 21 points"):
        FreiHand(folder, spec)
    (folder / "evaluation_xyz.json").write_text("[[1, 2")
    with pytest.raises(UserError, match="not a readable list"):
        FreiHand(folder, spec)
    (folder / "evaluation_xyz.json").unlink()
    with pytest.raises(UserError, match="scores need both"):
        FreiHand(folder, spec)
    (folder / "evaluation_verts.json").unlink()
    (folder / "evaluation" / "rgb" / "00000002.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(BadSampleError, match=r"00000002\.jpg:2: "):
        FreiHand(folder, spec).picture(2)
    (folder / "evaluation" / "rgb" / "00000001.jpg").unlink()
    with pytest.raises(UserError, match=r"lacks the picture 00000001\.jpg"):
        FreiHand(folder, spec)
    zeros = np.zeros((2, 21, 3)), np.zeros((2, 778, 3))
    with pytest.raises(UserError, match=r"wants joints of shape \(3960, 21, 3\), got \(2, 21, 3\)"):
        write_submission(tmp_path / "pred.zip", *zeros)
    with pytest.raises(UserError, match="not finite"):
        write_submission(tmp_path / "pred.zip", zeros[0] * np.nan, zeros[1], count=2)
    with pytest.raises(UserError, match="cannot write"):
        write_submission(tmp_path / "nowhere" / "pred.zip", *zeros, count=2)


def test_data_that_is_not_the_protocols_is_refused(tmp_path: Path) -> None:
    spec, template = spec_of("smpl"), TEMPLATES["smpl"]
    with pytest.raises(UserError, match="needs its data: UP-3D test split"):
        open_protocol_set(protocol("up3d"), "", spec, template)
    with pytest.raises(UserError, match="there is no data at"):
        open_protocol_set(protocol("up3d"), tmp_path / "nothing", spec, template)
    with pytest.raises(UserError, match="is not data for protocol human36m-p2: it holds neither"):
        open_protocol_set(protocol("human36m-p2"), tmp_path, spec, template)
    (tmp_path / "sequenceFiles").mkdir()
    with pytest.raises(UserError, match="is not data for protocol human36m-p2: it holds 3dpw"):
        open_protocol_set(protocol("human36m-p2"), tmp_path, spec, template)
    (tmp_path / "test.yaml").write_text("img: a.tsv\n")
    with pytest.raises(UserError, match="name the folder of your SMPL files"):
        open_protocol_set(protocol("3dpw-neutral"), tmp_path / "test.yaml", spec, template)
    with pytest.raises(UserError, match="leave --data away"):
        open_protocol_set(protocol("generated"), tmp_path, spec_of("anny"), TEMPLATES["anny"])


def test_bad_networks_and_bodies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="is a checkpoint and runs in fp32; int8 is for bundles"):
        open_network(tmp_path / "metro.pt", precision="int8")
    arguments = ["evaluate", str(shipped_bundle_path()), "--protocol", "generated"]
    assert main(["evaluate", "metro.pt", "--crop-rule", "metro_demo"]) == 2
    assert "error: --crop-rule needs --protocol, one of generated" in capsys.readouterr().err
    assert main(["evaluate", "metro.pt", "--data", "3DPW"]) == 2
    assert "error: --data needs --protocol" in capsys.readouterr().err
    assert main([*arguments, "--submission", "pred.zip"]) == 2
    assert "a submission file belongs to protocol freihand" in capsys.readouterr().err
    assert main([*arguments, "--tta", "--scales", "1"]) == 2
    assert "--tta is METRO's set of views" in capsys.readouterr().err


def test_views_are_chosen_on_the_command_line() -> None:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["evaluate", "network.pt", "--protocol", "freihand", "--rotations", "-10", "0", "10"])
    assert command._views(args) == TestTimeViews((1.0,), (-10.0, 0.0, 10.0))


def tsv_set(folder: Path, count: int) -> Path:
    """METRO's files for `count` pictures with poses, 24 joints and a gender."""
    rng, names = np.random.default_rng(4), ("img", "label")
    rows: dict[str, list[tuple[str, str]]] = {name: [] for name in names}
    for i in range(count):
        _, jpeg = cv2.imencode(".jpg", np.full((60, 60, 3), 20 + 5 * i, np.uint8))
        label = {
            "center": [30, 30], "scale": 0.2, "has_2d_joints": 0, "has_3d_joints": 1, "has_smpl": 1,
            "3d_joints": np.column_stack((rng.normal(0, 0.3, (24, 3)), np.ones(24))).tolist(),
            "2d_joints": np.zeros((24, 3)).tolist(), "pose": rng.normal(0, 0.2, 72).tolist(),
            "betas": rng.normal(0, 1, 10).tolist(), "gender": "fm"[i % 2],
        }  # fmt: skip
        rows["img"].append((f"{i}.jpg", base64.b64encode(jpeg.tobytes()).decode()))
        rows["label"].append((f"{i}.jpg", json.dumps([label])))
    for name in names:
        write_tsv(folder / f"test.{name}.tsv", rows[name])
    (folder / "test.yaml").write_text("img: test.img.tsv\nlabel: test.label.tsv\n")
    return folder / "test.yaml"


@pytest.mark.parametrize(
    ("name", "defined"), [("human36m-p2", 2), ("3dpw-neutral", 3), ("3dpw-gendered", 3), ("up3d", 3)]
)
def test_protocols_on_metros_files_with_bodies_in_smpls_format(name: str, defined: int, tmp_path: Path) -> None:
    pytest.importorskip("smplfitter")
    folder = metro_folder()
    for gender, seed in (("female", 7), ("male", 8)):
        write_smpl(tmp_path, gender=gender, seed=seed)
    template = template_from_folder("smpl", folder)
    spec = ModelSpec("made", 32, "h36m14", "smpl", 6890, crop_rule="metro_eval")
    smpl = tmp_path if name == "3dpw-gendered" else folder
    people, used = open_protocol_set(protocol(name), tsv_set(tmp_path, 3), spec, template, smpl=smpl)
    truth = np.zeros((3, 6890, 3), np.float32)
    if name != "human36m-p2":
        truth = np.stack([people[i]["vertices"].numpy() for i in range(3)])

    def predict(images: np.ndarray) -> np.ndarray:
        levels = (images[:, 0, 16, 16] * spec.std[0] + spec.mean[0]) * 255
        return truth[np.rint((levels - 20) / 5).astype(int)] + np.float32(0.25)

    means = run_protocol(used, predict, people, template, batch_size=2)["metro_eval"].means()
    assert sum(value is not None for value in means.values()) == defined
    if name == "human36m-p2":
        assert means["mpjpe"] > 100  # random labels against a point
    else:
        assert means["mpvpe"] < 1e-3  # the truth, moved
        assert (means["mpjpe"] < 1e-3) == (name == "up3d")  # else against the labels' own joints


@pytest.mark.slow
def test_the_difference_between_crop_rules_on_the_generated_set(tmp_path: Path, capsys: Any) -> None:
    """The shipped network, which learnt with box_area: docs/evaluation.md gives the figures of more samples."""
    rules = ["box_area", "box_bilinear", "metro_eval", "metro_demo"]
    arguments = ["evaluate", str(shipped_bundle_path()), "--protocol", "generated", "--count", "40", "--workers", "0"]
    arguments += ["--precision", "int8", "--crop-rule", *rules, "-o", str(tmp_path / "rules.json")]
    assert main(arguments) == 0
    with capsys.disabled():
        print(capsys.readouterr().out)
    rows = {row["crop_rule"]: row for row in json.loads((tmp_path / "rules.json").read_text())["rows"]}
    own = rows["box_area"]["errors"]["pa_mpjpe"]
    for rule in rules[1:]:
        assert 0 < rows[rule]["moved_mm"] < 40, rule  # another crop moves the body, but does not break it
        assert abs(rows[rule]["errors"]["pa_mpjpe"] - own) < 6, rule
