"""What the unpickler reads, and above all what it does not run."""

from __future__ import annotations

import builtins
import codecs
import io
import os
import pickle
import subprocess
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from metro_edge import unpickle
from metro_edge.errors import UserError
from tests.smpl_files import Ch, Select, python2_pickle


def saved(folder: Path, data: bytes, name: str = "data.pkl") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


SAMPLE = {
    "floats": np.random.default_rng(0).normal(size=(4, 3)),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "big": np.arange(5, dtype=">i4"),
    "small": np.array([4294967295, 1], np.uint32),
    "flags": np.array([True, False]),
    "bytes": np.frombuffer(b"\x00\xff\x80" * 9, np.uint8),
    "empty": np.zeros((0, 3)),
    "words": np.array(["left", "right"]),
    "number": np.float64(2.5),
    "count": np.int32(7),
    "plain": [1, 2.5, None, True, "text", (1, 2), {"nested": [np.arange(3)]}, {3, 4}],
}


def same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, (np.ndarray, np.generic)):
        assert a.dtype.newbyteorder("=") == b.dtype.newbyteorder("=")
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_and_arrays_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    same(unpickle.load(saved(tmp_path, pickle.dumps(SAMPLE, protocol))), SAMPLE)


def test_python_2_pickles(tmp_path: Path) -> None:
    values = {k: v for k, v in SAMPLE.items() if k != "words"}
    same(unpickle.load(saved(tmp_path, python2_pickle(values))), values)
    raw = bytes(range(256)) * 3
    assert unpickle.load(saved(tmp_path, python2_pickle({"a": raw})))["a"].encode("latin1") == raw


@pytest.mark.parametrize("kind", ["csr_matrix", "csc_matrix", "coo_matrix", "csr_array"])
@pytest.mark.parametrize("python2", [False, True])
def test_sparse_matrices_without_scipy(tmp_path: Path, kind: str, python2: bool) -> None:
    dense = np.where(np.random.default_rng(1).random((5, 7)) < 0.3, 2.5, 0)
    matrix = getattr(scipy.sparse, kind)(dense)
    data = python2_pickle([matrix]) if python2 else pickle.dumps([matrix])
    (read,) = unpickle.load(saved(tmp_path, data))
    assert read.shape == (5, 7) and read.toarray().dtype == np.float64
    np.testing.assert_array_equal(read.toarray(), dense)


def test_coo_of_old_scipy_and_repeated_entries(tmp_path: Path) -> None:
    matrix = scipy.sparse.coo_matrix((np.ones(3), ([0, 0, 1], [1, 1, 0])), shape=(2, 2))
    state = {"row": matrix.row, "col": matrix.col, "data": matrix.data, "_shape": (2, 2)}
    matrix.__dict__.clear()
    matrix.__dict__.update(state)
    read = unpickle.load(saved(tmp_path, python2_pickle(matrix)))
    np.testing.assert_array_equal(read.toarray(), [[0, 2], [1, 0]])


def test_chumpy_is_the_array_it_holds(tmp_path: Path) -> None:
    values = np.arange(12.0).reshape(3, 4)
    data = {"a": Ch(values), "b": Ch(Ch(values)), "c": Select(Ch(values), np.array([5, 1]), (2, 1)), "d": values}
    data["e"] = Select(values, np.array([11]))
    read = unpickle.load(saved(tmp_path, python2_pickle(data)))
    for key in "abd":
        np.testing.assert_array_equal(read[key], values)
    np.testing.assert_array_equal(read["c"], [[5], [1]])
    np.testing.assert_array_equal(read["e"], [11])


def test_npz_with_and_without_objects(tmp_path: Path) -> None:
    objects = np.empty(2, object)
    objects[:] = [scipy.sparse.identity(3, format="csr"), [1, 2]]
    single = np.array({"a": 1}, dtype=object)
    np.savez(tmp_path / "x.npz", plain=np.arange(6).reshape(2, 3).T, objects=objects, single=single)
    read = unpickle.load(tmp_path / "x.npz")
    np.testing.assert_array_equal(read["plain"], np.arange(6).reshape(2, 3).T)
    np.testing.assert_array_equal(read["objects"][0].toarray(), np.eye(3))
    assert read["objects"][1] == [1, 2] and read["single"] == {"a": 1}
    np.save(tmp_path / "y.npy", np.arange(3.0))
    np.testing.assert_array_equal(unpickle.load(tmp_path / "y.npy"), [0, 1, 2])


def test_shared_objects_stay_shared_and_loops_end(tmp_path: Path) -> None:
    shared = [np.arange(2)]
    shared.append(shared)
    read = unpickle.load(saved(tmp_path, pickle.dumps({"a": shared, "b": shared})))
    assert read["a"] is read["b"] and read["a"][1] is read["a"]


class Innocent:
    pass


ATTACKS = {
    "os.system": (lambda mark: Calls(os.system, f"touch {mark}"), rf"{os.system.__module__}\.system"),
    "eval": (lambda mark: Calls(builtins.eval, f"open({str(mark)!r}, 'w')"), r"builtin(s|__)\.eval"),
    "getattr": (lambda mark: Calls(getattr, "x", "join"), r"builtin(s|__)\.getattr"),
    "a class": (lambda mark: Innocent(), r"needs \S*test_unpickle\.Innocent"),
    "subprocess": (lambda mark: Calls(subprocess.Popen, ["touch", str(mark)]), r"(subprocess|commands)\.Popen"),
    "hidden in an array": (
        lambda mark: np.array([1, Calls(os.system, f"touch {mark}")], dtype=object),
        rf"{os.system.__module__}\.system",
    ),
    "numpy's loader": (lambda mark: Calls(np.load, str(mark)), r"numpy\.load"),
    "a codec": (lambda mark: Calls(codecs.lookup, "rot13"), r"codecs\.lookup"),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("container", ["pickle", "npz"])
def test_attacks_do_not_run_and_are_named(tmp_path: Path, attack: str, container: str) -> None:
    make, message = ATTACKS[attack]
    mark = tmp_path / "ran"
    if container == "pickle":
        path = saved(tmp_path, pickle.dumps({"v_template": np.zeros(3), "x": make(mark)}, 2))
    else:
        path = tmp_path / "x.npz"
        array = np.empty(1, object)
        array[0] = make(mark)
        np.savez(path, U=array)
    with pytest.raises(UserError, match=message) as caught:
        unpickle.load(path)
    assert str(path) in str(caught.value)
    assert not mark.exists()


def test_an_attack_inside_a_chumpy_object_and_a_sparse_matrix(tmp_path: Path) -> None:
    call = Calls(os.system, f"touch {tmp_path / 'ran'}")
    for value in (Ch([call]), Select(call, np.array([0])), _with_state({"extra": call})):
        with pytest.raises(UserError, match=rf"{os.system.__module__}\.system"):
            unpickle.load(saved(tmp_path, python2_pickle(value)))
    assert not (tmp_path / "ran").exists()


def test_the_attacks_would_have_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(ATTACKS["os.system"][0](mark), 2))  # noqa: S301
    assert mark.exists()


# Pickle programs by hand: "c" names an object, "R" calls, "b" sets its state.
REDUCE = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n"
SET_ATTRIBUTES = b"}(X\x01\x00\x00\x00aK\x01ub"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (REDUCE + SET_ATTRIBUTES + b".", "changes a function"),
        (b"\x80\x02cnumpy\nndarray\n.", "bare class"),
        (b"\x80\x02ccollections\nOrderedDict\n" + SET_ATTRIBUTES + b".", "not a readable pickle"),
        (b"\x80\x02ccollections\nOrderedDict\nN}X\x01\x00\x00\x00aK\x01s\x86b.", "not a readable pickle"),
        (b"\x80\x02cchumpy.ch\nCh\n" + SET_ATTRIBUTES + b".", "not a readable pickle"),
        (b"\x80\x02cchumpy.ch\nCh\n)\x81.", "without its 'x'"),
        (b"\x80\x02cchumpy.ch\nCh\n)\x81]b.", "unknown form"),
        (b"\x80\x02cscipy.sparse.csr\ncsr_matrix\n)\x81}b.", "incomplete sparse matrix"),
        (b"\x80\x02cscipy.sparse.csr\ncsr_matrix\n)\x81]b.", "unknown form"),
        (b"\x80\x02cscipy.sparse.coo\ncoo_matrix\n)\x81}b.", "incomplete sparse matrix"),
        (b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00V\x85R.", "data type 'V'"),
        (b"\x80\x02cnumpy\ndtype\nX\x03\x00\x00\x00M8[\x85R.", "data type"),
        (
            b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R(K\x03X\x01\x00\x00\x00<NX\x01\x00\x00\x00aNtb.",
            "structured",
        ),
        (b"\x80\x02cnumpy.core.multiarray\nscalar\nK\x01K\x02\x86R.", "without a data type"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", "'rot13'"),
        (b"\x80\x02ccopy_reg\n_reconstructor\nc__builtin__\nset\nK\x01K\x02\x87R.", "not admitted"),
        (b"\x80\x02c__builtin__\nobject\n)\x81.", "bare class"),
        (b"Pid\n.", "outside the file"),
        (b"\x80\x02" + b"(" * 3 + b".", "not a readable pickle"),
        (b"nonsense", "not a readable pickle"),
        (b"", "cut short"),
        (b"\x93NUMPY\x09\x00", "cut short|9, 0"),
    ],
)
def test_malformed_and_hostile_programs(tmp_path: Path, program: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        unpickle.load(saved(tmp_path, program))
    assert not hasattr(OrderedDict, "a")


def _with_state(state: Any) -> Any:
    matrix = scipy.sparse.csr_matrix(np.eye(2))
    matrix.__dict__.update(state)
    return matrix


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (_with_state({"indices": np.array([0, 9], np.int32)}), "outside its shape"),
        (_with_state({"indices": np.array([0, -1], np.int32)}), "outside its shape"),
        (_with_state({"data": np.ones(5)}), "differ in length"),
        (_with_state({"indices": np.array([0.0, 1.0])}), "outside its shape"),
    ],
)
def test_inconsistent_objects(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        unpickle.load(saved(tmp_path, python2_pickle(value)))


def test_a_huge_shape_is_not_made_dense(tmp_path: Path) -> None:
    matrix = scipy.sparse.coo_matrix(([1.0], ([0], [0])), shape=(2**20, 2**20))
    read = unpickle.load(saved(tmp_path, pickle.dumps(matrix)))
    with pytest.raises(UserError, match="too large"):
        read.toarray()


def test_array_state_that_lies(tmp_path: Path) -> None:
    dtype = (
        b"cnumpy\ndtype\nX\x02\x00\x00\x00%s\x85R(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb"
    )
    start = REDUCE + b"cnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01K\x02\x85"
    for code, data, message in (
        (b"O8", b"C\x10" + b"A" * 16, "bytes where objects belong"),  # else 16 bytes would be taken for pointers
        (b"f8", b"]", "list where numbers belong"),
        (b"f8", b"C\x03abc", "not a readable pickle"),
    ):
        with pytest.raises(UserError, match=message):
            unpickle.load(saved(tmp_path, start + dtype % code + b"\x89" + data + b"tb."))
    with pytest.raises(UserError, match="array without a data type"):
        unpickle.load(saved(tmp_path, start + b"N\x89]tb."))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file at"):
        unpickle.load(tmp_path / "none.pkl")
    with pytest.raises(UserError, match="cannot read"):
        unpickle.load(tmp_path)
    whole = python2_pickle({"a": np.zeros(1000)})
    for length in (3, 40, len(whole) // 2, len(whole) - 1):
        with pytest.raises(UserError, match=r"data\.pkl is (cut short|not a readable)"):
            unpickle.load(saved(tmp_path, whole[:length]))
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(1000))
    with pytest.raises(UserError, match="cut short or damaged"):
        unpickle.load(saved(tmp_path, buffer.getvalue()[:500], "x.npz"))
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive:
        npy = io.BytesIO()
        np.save(npy, np.zeros(1000))
        archive.writestr("a.npy", npy.getvalue()[:300])
    with pytest.raises(UserError, match="cut short or damaged: 172 of 8000 bytes"):
        unpickle.load(tmp_path / "y.npz")


def test_deep_nesting(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nests its data too deeply"):
        unpickle.load(saved(tmp_path, b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."))
