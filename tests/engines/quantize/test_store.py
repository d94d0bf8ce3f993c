"""Results that survive a killed process."""

from __future__ import annotations

import numpy as np
import pytest

from engines.quantize.store import FILE, Store, hash_of, key_of
from metro_edge.errors import UserError


def test_what_was_put_is_there_for_the_next_process(tmp_path):
    first = Store(tmp_path / "work")
    first.put("a", {"mm": 0.25, "none": None})
    first.put("b", [1.5, 2.5])
    first.put("a", {"mm": 0.5})
    second = Store(tmp_path / "work")
    assert len(second) == 2 and "c" not in second
    assert second.get("a") == {"mm": 0.5} and second.get("b") == [1.5, 2.5]


def test_remember_makes_a_value_once(tmp_path):
    store, calls = Store(tmp_path), []
    for _ in range(3):
        assert store.remember("k", lambda: calls.append(1) or (1, 2)) == [1, 2]  # as JSON gives it back
    assert len(calls) == 1 and Store(tmp_path).get("k") == [1, 2]


def test_a_line_that_a_killed_process_had_begun_is_dropped(tmp_path):
    store = Store(tmp_path)
    store.put("a", 1.0)
    store.put("b", 2.0)
    whole = (tmp_path / FILE).read_bytes()
    for length in range(len(whole.split(b"\n")[0]) + 2, len(whole)):
        (tmp_path / FILE).write_bytes(whole[:length])
        again = Store(tmp_path)
        assert "a" in again and "b" not in again
        again.put("c", 3.0)
        assert sorted(Store(tmp_path)._values) == ["a", "c"]


@pytest.mark.parametrize("line", ["nonsense", "[1, 2]", '{"key": "a"}', "{}", "[" * 100_000])
def test_another_file_is_refused(tmp_path, line):
    (tmp_path / FILE).write_text(line + "\n")
    with pytest.raises(UserError, match=r"line 1, is not a result of .* choose another --work"):
        Store(tmp_path)


def test_without_a_folder_results_stay_in_memory():
    store = Store(None)
    store.put("a", 1)
    assert store.get("a") == 1 and store.path is None


def test_what_json_cannot_hold_is_not_written(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        store.put("a", float("nan"))
    assert "a" not in store and not (tmp_path / FILE).exists()


def test_keys_and_hashes_tell_apart():
    assert key_of("a", 1) != key_of("a", "1") != key_of(1, "a")
    assert key_of({"x": 1, "y": 2}) == key_of({"y": 2, "x": 1})
    values = np.arange(6, dtype=np.float32)
    assert hash_of(values) == hash_of(values.copy()) == hash_of(np.arange(12, dtype=np.float32)[:6])
    others = (values.astype(np.float64), values.reshape(2, 3), values + 1, None)
    assert len({hash_of(values), *map(hash_of, others)}) == 5
