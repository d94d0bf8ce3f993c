"""Each layer by itself: the shortcut through kept activations gives what the whole graph gives."""

from __future__ import annotations

import numpy as np
import pytest

from engines.quantize.loss import NOT_FINITE_MM, Loss
from engines.quantize.sensitivity import Sensitivities, group_items, harms, single_items, too_many
from engines.quantize.store import Store


def walker(network, store: Store, make=None) -> Sensitivities:
    return Sensitivities(network.model, network.judge, network.layers, make or network.make, store, "about")


def test_the_same_as_running_the_whole_graph(network):
    items = single_items(network.layers)
    found = walker(network, Store(None)).measure(items, "int8")
    assert list(found) and set(found) == {layer.name for layer in network.layers}
    for item in items[:: len(items) // 6]:
        whole = network.judge.loss_of(network.make(network.model, dict.fromkeys(item.layers, "int8")))
        assert found[item.name].moved_mm == pytest.approx(whole.moved_mm, rel=0.02, abs=1e-3)
        assert found[item.name].mpjpe_mm == pytest.approx(whole.mpjpe_mm, abs=0.02 * whole.moved_mm + 1e-3)
    assert max(loss.moved_mm for loss in found.values()) > 10 * min(loss.moved_mm for loss in found.values())


def test_any_order_and_groups(network):
    groups = group_items(network.model, network.layers, 6)
    assert [name for item in groups for name in item.layers] == [layer.name for layer in network.layers]
    assert 3 <= len(groups) <= 7 and any(item.name.endswith(" more") for item in groups)
    assert sum(item.macs for item in groups) == sum(layer.macs for layer in network.layers)
    straight = walker(network, Store(None)).measure(groups, "int8")
    shuffled = walker(network, Store(None)).measure(groups[::-1], "int8")
    assert straight == shuffled
    whole = network.judge.loss_of(network.make(network.model, dict.fromkeys(groups[-1].layers, "int8")))
    assert straight[groups[-1].name].moved_mm == pytest.approx(whole.moved_mm, rel=0.02)


def test_what_is_in_the_store_is_not_measured_again(network, tmp_path):
    items = single_items(network.layers)[-6:]
    made: list[str] = []

    def make(model, choice):
        made.extend(choice)
        return network.make(model, choice)

    class KilledError(Exception):
        pass

    def killed(model, choice):
        if len(made) == 3:
            raise KilledError
        return make(model, choice)

    with pytest.raises(KilledError):
        walker(network, Store(tmp_path), killed).measure(items, "int8")
    walker(network, Store(tmp_path), make).measure(items, "int8")
    assert made == [item.name for item in items]  # each once, over both runs
    other = Sensitivities(network.model, network.judge, network.layers, make, Store(tmp_path), "other ranges")
    other.measure(items[:1], "int8")
    assert made[-1] == items[0].name  # results of other ranges are not taken


def loss_of(moved: float, lost: float, error: float) -> Loss:
    return Loss(lost, lost, moved, error, error, 0.01)


def test_expected_loss_lies_between_measurement_and_distance():
    certain = {"a": loss_of(1.0, 0.1, 1e-6), "b": loss_of(2.0, 0.8, 1e-6)}
    assert harms(certain, "mpjpe") == pytest.approx({"a": 0.1, "b": 0.8}, rel=1e-3)
    # Where errors are large, losses are as the squares of the distances, in sum what was measured.
    unsure = {"a": loss_of(1.0, 0.5, 10.0), "b": loss_of(2.0, 0.0, 10.0)}
    assert harms(unsure, "mpjpe") == pytest.approx({"a": 0.1, "b": 0.4}, rel=1e-2)
    assert all(value > 0 for value in harms({"a": loss_of(1.0, -0.4, 0.01)}, "mpjpe").values())


def test_expected_distances_add_up_as_squares():
    found = harms({"a": loss_of(3.0, 0, 1), "b": loss_of(4.0, 0, 1)}, "moved")
    assert found == pytest.approx({"a": 9 / 5, "b": 16 / 5})


def test_a_layer_that_overflows_is_dear():
    found = harms(
        {"a": loss_of(1.0, 0.1, 0.01), "b": Loss(NOT_FINITE_MM, None, NOT_FINITE_MM, 0.0, None, 0.0)}, "mpjpe"
    )
    assert found["b"] > 1e6 * found["a"] and np.isfinite(found["b"])


def test_large_networks_are_measured_in_groups_first(network):
    assert not too_many(network.layers, 128)
    assert too_many(network.layers * 60, 20_000)
