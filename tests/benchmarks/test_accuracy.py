from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from benchmarks.accuracy import measure_accuracy
from benchmarks.report import unpack_samples
from metro_edge.backends import Session, open_session
from metro_edge.bundle import Bundle
from metro_edge.errors import UserError
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate
from tests.benchmarks.conftest import MOVED_M, TinyPeople, free_vertices
from training.evaluate import evaluate


@pytest.fixture
def sessions(bundle: Bundle) -> Iterator[dict[str, Session]]:
    with ExitStack() as stack:
        yield {p: stack.enter_context(open_session(bundle, p, threads=1)) for p in bundle.precisions}


def test_errors_are_the_ones_computed_by_hand(
    sessions: dict[str, Session], people: TinyPeople, template: BodyTemplate
) -> None:
    found = measure_accuracy(sessions, people, template, batch_size=4)
    # The truth is the prediction made larger by k %, so every point is off by k % of its distance from the root.
    growth = 0.01 * np.arange(21)
    joints = template.joints("h36m14", template.vertices)
    root = (joints[2] + joints[3]) / 2
    joint_m = np.linalg.norm(joints - root, axis=1).mean()
    vertex_m = np.linalg.norm(template.vertices - root, axis=1).mean()
    fp32 = found["fp32"]
    assert fp32.errors.mpjpe == pytest.approx(growth * joint_m, abs=1e-7)
    assert fp32.errors.pa_mpjpe == pytest.approx(0.0, abs=1e-7)
    assert fp32.errors.mpvpe == pytest.approx(growth * vertex_m, abs=1e-7)
    values = fp32.to_dict()
    assert values["mpjpe_mm"] == pytest.approx(100.0 * joint_m, rel=1e-5)  # mean growth 10 %
    assert values["mpvpe_mm"] == pytest.approx(100.0 * vertex_m, rel=1e-5)
    assert values["against_fp32"] is None


def test_loss_against_fp32_is_paired_and_exact(
    sessions: dict[str, Session], people: TinyPeople, template: BodyTemplate
) -> None:
    found = measure_accuracy(sessions, people, template)
    share = free_vertices(template).mean()
    against = found["int8"].to_dict()["against_fp32"]
    assert found["int8"].moved == pytest.approx(MOVED_M * share, abs=1e-7)
    assert against["moved_mm"] == pytest.approx(1000 * MOVED_M * share, abs=1e-4)
    # No joint depends on the vertices that were moved.
    assert against["mpjpe_change_mm"] == pytest.approx(0.0, abs=1e-4)
    assert against["pa_mpjpe_change_mm"] == pytest.approx(0.0, abs=1e-4)
    per_sample = found["int8"].errors.mpvpe - found["fp32"].errors.mpvpe
    assert against["mpvpe_change_mm"] == pytest.approx(1000 * per_sample.mean())
    assert per_sample[0] == pytest.approx(MOVED_M * share, abs=1e-7)  # the sample whose truth is fp32's answer
    half = found["fp16"].to_dict()["against_fp32"]
    rounding_mm = 1000 * np.linalg.norm(template.vertices.astype(np.float16) - template.vertices, axis=1).mean()
    assert 0 < half["moved_mm"] < 2 * rounding_mm


def test_worst_sample_is_named(sessions: dict[str, Session], spec: ModelSpec, template: BodyTemplate) -> None:
    # int8 rounds the third image's value to a multiple of 0.02, so its body sways differently.
    people = TinyPeople(spec, [template.vertices] * 3, values=[0.0, 0.02, 0.011])
    against = measure_accuracy(sessions, people, template, batch_size=2)["int8"].to_dict()["against_fp32"]
    assert against["moved_worst_sample"] == 2
    assert against["moved_worst_mm"] > against["moved_mm"] > 1000 * MOVED_M * free_vertices(template).mean()


def test_losses_have_p95_worst_and_intervals_that_are_paired(
    sessions: dict[str, Session], people: TinyPeople, template: BodyTemplate
) -> None:
    found = measure_accuracy(sessions, people, template)
    change_mm = 1000 * (found["int8"].errors.mpvpe - found["fp32"].errors.mpvpe)
    values = found["int8"].to_dict()
    against = values["against_fp32"]
    assert against["mpvpe_change_p95_mm"] == pytest.approx(np.percentile(change_mm, 95))
    assert against["mpvpe_change_worst_mm"] == pytest.approx(change_mm.max())
    assert against["mpvpe_change_worst_sample"] == change_mm.argmax()
    paired, alone = against["intervals"]["mpvpe_change_mm"], values["intervals"]["mpvpe_mm"]
    assert paired["low"] <= against["mpvpe_change_mm"] <= paired["high"]
    assert alone["low"] < values["mpvpe_mm"] < alone["high"]
    # The people differ far more from each other than int8 from fp32 on one of them.
    assert paired["high"] - paired["low"] < 0.1 * (alone["high"] - alone["low"])
    assert unpack_samples(values["per_sample_mm"]["mpvpe"]) == pytest.approx(1000 * found["int8"].errors.mpvpe)


def test_too_few_samples_give_neither_p95_nor_interval(
    sessions: dict[str, Session], people: TinyPeople, template: BodyTemplate
) -> None:
    few = measure_accuracy(sessions, TinyPeople(people.spec, people.meshes[:5]), template)["int8"].to_dict()
    assert few["intervals"] == dict.fromkeys(("mpjpe_mm", "pa_mpjpe_mm", "mpvpe_mm"))
    assert few["against_fp32"]["mpjpe_change_p95_mm"] is None
    assert set(few["against_fp32"]["intervals"].values()) == {None}


def test_the_hash_names_the_true_meshes_and_their_order(
    sessions: dict[str, Session], people: TinyPeople, template: BodyTemplate
) -> None:
    def of(meshes: list[np.ndarray], batch: int) -> str | None:
        one = {"fp32": sessions["fp32"]}
        return measure_accuracy(one, TinyPeople(people.spec, meshes), template, batch_size=batch)["fp32"].truth_sha256

    meshes = list(people.meshes[:4])
    assert of(meshes, 4) == of(meshes, 3)
    assert len({of(meshes, 4), of(meshes[::-1], 4), of(meshes[:3], 4)}) == 3


def test_agrees_with_the_evaluation_of_training(
    sessions: dict[str, Session], people: TinyPeople, template: BodyTemplate
) -> None:
    trained = evaluate(lambda images: sessions["int8"].infer(images).vertices, people, template)  # type: ignore[arg-type]
    found = measure_accuracy(sessions, people, template)["int8"].errors
    for name in ("mpjpe", "pa_mpjpe", "mpvpe"):
        assert np.array_equal(getattr(found, name), getattr(trained, name))


def test_without_a_reference_nothing_is_compared(
    sessions: dict[str, Session], people: TinyPeople, template: BodyTemplate
) -> None:
    found = measure_accuracy({"int8": sessions["int8"]}, people, template, reference=None)
    assert found["int8"].to_dict()["against_fp32"] is None


def test_nan_is_refused_by_precision_and_sample(
    bundle_answering: Callable[..., Bundle], people: TinyPeople, template: BodyTemplate
) -> None:
    broken = template.vertices.copy()
    broken[7, 1] = np.nan
    bundle = bundle_answering({"fp32": template.vertices, "int8": broken})
    with (
        open_session(bundle, "fp32") as fp32,
        open_session(bundle, "int8") as int8,
        pytest.raises(UserError, match=r"the int8 prediction of sample 0 has NaN"),
    ):
        measure_accuracy({"fp32": fp32, "int8": int8}, people, template)


def test_nan_in_the_truth_names_the_sample_across_batches(
    sessions: dict[str, Session], people: TinyPeople, template: BodyTemplate
) -> None:
    people.meshes[17][0, 0] = np.inf  # type: ignore[index]
    with pytest.raises(UserError, match=r"the truth of sample 17 has NaN or infinity"):
        measure_accuracy(sessions, people, template, batch_size=5)


def test_refuses_nothing_and_an_unknown_reference(
    sessions: dict[str, Session], people: TinyPeople, template: BodyTemplate, spec: ModelSpec
) -> None:
    with pytest.raises(UserError, match="0 samples, 3 networks"):
        measure_accuracy(sessions, TinyPeople(spec, []), template)
    with pytest.raises(UserError, match="21 samples, 0 networks"):
        measure_accuracy({}, people, template)
    with pytest.raises(UserError, match="reference fp32 is not measured; measured are int8"):
        measure_accuracy({"int8": sessions["int8"]}, people, template)
