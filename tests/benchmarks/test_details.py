from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.accuracy import measure_accuracy
from benchmarks.details import Details, Projected
from metro_edge.backends import Session, open_session
from metro_edge.bundle import Bundle
from metro_edge.errors import UserError
from metro_edge.joints import H36M14
from metro_edge.template import BodyTemplate
from tests.benchmarks.conftest import TinyPeople, made_details

CAMERA = (0.9, 0.02, -0.03)  # of the tiny networks for a black image


class SeenPeople(TinyPeople):
    """Tiny people whose true joints lie 0.25 crop coordinates to the right of the network's; two do not count."""

    side_px = 200.0

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = super().__getitem__(index)
        template: BodyTemplate = self.template  # type: ignore[attr-defined]
        joints = template.joints("h36m14", template.vertices)
        places = CAMERA[0] * (joints[:, :2] + CAMERA[1:]) + (0.25, 0.0)
        counts = np.ones((14, 1))
        counts[:2] = 0.0
        places[:2] = 77.0
        return {**item, "joints_2d": np.hstack((places, counts)), "side_px": self.side_px * (1 + index)}


@pytest.fixture
def seen(people: TinyPeople, template: BodyTemplate) -> SeenPeople:
    found = SeenPeople(people.spec, people.meshes[:7])
    found.template = template  # type: ignore[attr-defined]
    return found


def measured(bundle: Bundle, people: TinyPeople, template: BodyTemplate, *precisions: str) -> dict[str, Any]:
    sessions: dict[str, Session] = {p: open_session(bundle, p, threads=1) for p in precisions}
    found = measure_accuracy(sessions, people, template, batch_size=3)
    return {name: one.to_dict() for name, one in found.items()}


def test_distances_on_the_picture_are_exact(bundle: Bundle, seen: SeenPeople, template: BodyTemplate) -> None:
    found = measured(bundle, seen, template, "fp32")["fp32"]["reprojection"]
    assert found["samples"] == 7
    # 0.25 of half a crop, of crops of 200, 400, ... 1400 px
    assert found["px"] == pytest.approx(0.125 * 800, rel=1e-5)
    assert found["px_interval"]["low"] < found["px"] < found["px_interval"]["high"]
    assert found["box_share"] == pytest.approx(0.125 * 1.2, rel=1e-5)  # the box is the crop over box_scale
    assert found["px_p95"] is None  # of 7 samples
    assert found["px_change"] is None


def test_losses_on_the_picture_are_paired(bundle: Bundle, seen: SeenPeople, template: BodyTemplate) -> None:
    found = measured(bundle, seen, template, "fp32", "fp16")["fp16"]["reprojection"]
    assert found["px_change"] == pytest.approx(0.0, abs=0.5)  # rounded to half floats
    assert found["box_share_change_interval"] is not None


def test_an_unknown_scale_leaves_px_out_and_no_label_all(
    bundle: Bundle, seen: SeenPeople, people: TinyPeople, template: BodyTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert measured(bundle, people, template, "fp32")["fp32"]["reprojection"] is None
    whole = SeenPeople.__getitem__
    monkeypatch.setattr(
        SeenPeople, "__getitem__", lambda self, k: {n: v for n, v in whole(self, k).items() if n != "side_px"}
    )
    found = measured(bundle, seen, template, "fp32")["fp32"]["reprojection"]
    assert found["px"] is None and found["px_interval"] is None
    assert found["box_share"] == pytest.approx(0.15, rel=1e-5)


def test_samples_without_a_joint_that_counts_are_not_averaged() -> None:
    halves, counts = np.full((3, 2), 0.5), np.array([[True, False], [False, False], [True, True]])
    halves[0, 1], halves[2, 1] = np.nan, 0.1
    projected = Projected(halves, counts, np.array([100.0, 100.0, 300.0]), 1.2)
    np.testing.assert_allclose(projected.per_sample("px"), [25.0, 45.0])
    np.testing.assert_allclose(projected.per_sample("box_share"), [0.3, 0.18])
    nobody = Details(("a", "b"), halves, halves, Projected(halves, np.zeros((3, 2), bool), None, 1.2))
    assert nobody._reprojection(None) is None


def test_the_table_of_joints_adds_up(bundle: Bundle, people: TinyPeople, template: BodyTemplate) -> None:
    found = measured(bundle, people, template, "fp32", "int8")
    table = found["int8"]["per_joint"]
    assert tuple(table) == H36M14.names
    for key, mean in (("error_mm", "mpjpe_mm"), ("pa_error_mm", "pa_mpjpe_mm")):
        assert np.mean([row[key] for row in table.values()]) == pytest.approx(found["int8"][mean], abs=1e-6)
    changes = [row["change_mm"] for row in table.values()]
    assert np.mean(changes) == pytest.approx(found["int8"]["against_fp32"]["mpjpe_change_mm"], abs=1e-6)
    assert {row["change_mm"] for row in found["fp32"]["per_joint"].values()} == {None}
    # The truth is the prediction made larger by k %: a joint is off by its distance from the root.
    joints = template.joints("h36m14", template.vertices)
    far = np.linalg.norm(joints - (joints[2] + joints[3]) / 2, axis=1)
    assert [row["error_mm"] for row in found["fp32"]["per_joint"].values()] == pytest.approx(100 * far, rel=1e-4)


def test_shares_and_their_changes() -> None:
    fp32, int8 = made_details(np.repeat([0.140, 0.2], 5)), made_details(np.repeat([0.151, 0.2], 5))
    shares = int8.to_dict(fp32)["shares"]
    assert (shares["pck"], shares["pck_change"]) == (0.0, -0.5)
    assert shares["pa_pck"] == 1.0  # 0.6 times as far
    assert shares["auc_change"] == pytest.approx(-2 / 31 / 2)  # 140 mm is below 145 and 150
    assert shares["pck_change_interval"]["low"] < -0.5 < shares["pck_change_interval"]["high"]
    assert fp32.to_dict()["shares"]["pck_change"] is None


def test_a_camera_that_is_not_finite_is_refused(bundle: Bundle, people: TinyPeople, template: BodyTemplate) -> None:
    with open_session(bundle, "fp32", threads=1) as session:
        infer = session.infer
        session.infer = lambda images: infer(images)._replace(camera=np.full((len(images), 3), np.nan))  # type: ignore
        with pytest.raises(UserError, match="the fp32 prediction of sample 0 has NaN"):
            measure_accuracy({"fp32": session}, people, template)
