"""Bundles from strangers: loading runs nothing, opens nothing else, and allocates no more than they hold."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metro_edge.bundle import Bundle
from metro_edge.cli import main, printable
from metro_edge.cli.info import described, precision_table
from metro_edge.errors import BundleError, UserError
from metro_edge.files import sha256_of


def with_body(source: Path, target: Path, body: bytes) -> Path:
    """A copy of a bundle with another body.npz, whose hash is right: a stranger can compute hashes as well."""
    shutil.copytree(source, target)
    (target / "body.npz").write_bytes(body)
    passport = json.loads((target / "passport.json").read_text())
    passport["files"]["body.npz"] = {"sha256": sha256_of(body), "bytes": len(body)}
    (target / "passport.json").write_text(json.dumps(passport))
    return target


def body_with(source: Path, **entries: bytes) -> bytes:
    """body.npz of a bundle with some entries replaced by raw bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(source / "body.npz") as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, entries.get(name.removesuffix(".npy"), old.read(name)))
    return out.getvalue()


def npy(values: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, values, allow_pickle=True)
    return out.getvalue()


def claiming(shape: tuple[int, ...], dtype: str = "<f4", held: bytes = b"\0" * 64) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
    return out.getvalue() + held


class Armed:
    """Pickles to something that would make a file."""

    def __reduce__(self):
        return os.mkdir, (str(Armed.path),)

    path = Path()


@pytest.mark.parametrize("shape", [(2**33, 3), (2**62, 2**62), (10**6, 3)])
def test_arrays_that_claim_more_than_they_hold_are_refused_before_they_are_made(shared_bundle, tmp_path, shape):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bundle = with_body(shared_bundle.path, tmp_path / "b", body_with(shared_bundle.path, vertices=claiming(shape)))
    with pytest.raises(BundleError, match=r"vertices.npy claims to be float32 of shape .* where 64 are"):
        Bundle.load(bundle)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_objects_are_refused_and_not_unpickled(shared_bundle, tmp_path):
    Armed.path = tmp_path / "armed"
    body = body_with(shared_bundle.path, licence=npy(np.array([Armed()], dtype=object)))
    with pytest.raises(BundleError, match="body.npz"):
        Bundle.load(with_body(shared_bundle.path, tmp_path / "b", body))
    assert not Armed.path.exists()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("faces", np.zeros((4, 3)), "indices must be integers"),
        ("faces", np.zeros((4, 2), np.int32), r"faces must be \(F, 3\)"),
        ("faces", np.full((4, 3), -1, np.int32), "faces point outside"),
        ("vertices", np.zeros((162, 3), np.int32), "vertices must be finite"),
        ("regressor.h36m14.weights", np.full((14, 6), np.nan, np.float32), "weights and rest joints must be finite"),
        ("regressor.h36m14.indices", np.full((14, 6), 10**6, np.int32), "regressor h36m14 point outside"),
        ("upsampling0.indices", np.zeros((162, 3), np.float32), "indices must be integers"),
    ],
)
def test_numbers_that_cannot_be(shared_bundle, tmp_path, name, values, message):
    body = body_with(shared_bundle.path, **{name: npy(values)})
    with pytest.raises(BundleError, match=message):
        Bundle.load(with_body(shared_bundle.path, tmp_path / "b", body))


@pytest.mark.parametrize("name", ["passport.json", "spec.json"])
def test_deeply_nested_json(shared_bundle, tmp_path, name):
    bundle = tmp_path / "b"
    shutil.copytree(shared_bundle.path, bundle)
    text = ("[" * 200_000).encode()
    (bundle / name).write_bytes(text)
    if name == "spec.json":
        passport = json.loads((bundle / "passport.json").read_text())
        passport["files"][name] = {"sha256": sha256_of(text), "bytes": len(text)}
        (bundle / "passport.json").write_text(json.dumps(passport))
    with pytest.raises(BundleError, match=f"{name} is not a JSON object"):
        Bundle.load(bundle)


@pytest.mark.parametrize("change", [{"box_scale": 1e300}, {"std": [1e-300] * 3}, {"mean": [1e30] * 3}])
def test_a_spec_whose_numbers_no_picture_survives(shared_bundle, tmp_path, capsys, change):
    bundle = tmp_path / "b"
    shutil.copytree(shared_bundle.path, bundle)
    text = json.dumps(json.loads((bundle / "spec.json").read_text()) | change).encode()
    (bundle / "spec.json").write_bytes(text)
    passport = json.loads((bundle / "passport.json").read_text())
    passport["files"]["spec.json"] = {"sha256": sha256_of(text), "bytes": len(text)}
    (bundle / "passport.json").write_text(json.dumps(passport))
    assert main(["info", str(bundle)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and f"{next(iter(change))} " in error and error.count("\n") == 1


def test_a_pipe_does_not_block(shared_bundle, tmp_path):
    bundle = tmp_path / "b"
    shutil.copytree(shared_bundle.path, bundle)
    (bundle / "spec.json").unlink()
    os.mkfifo(bundle / "spec.json")
    with pytest.raises(BundleError, match="not a regular file"):
        Bundle.load(bundle)
    os.mkfifo(tmp_path / "b.zip")
    with pytest.raises(BundleError, match="no bundle at .*b.zip"):
        Bundle.load(tmp_path / "b.zip")


def test_errors_cannot_steer_the_terminal(bundle_of, network, frame, tmp_path, capfd):
    """An engine's message tells the name of the operator, which is the stranger's."""
    model = network()
    model.graph.node[0].op_type = "Red\x1b[31m"
    cv2.imwrite(str(tmp_path / "frame.png"), frame)
    command = ["run", str(tmp_path / "frame.png"), "--bundle", str(bundle_of(model).path), "-o", str(tmp_path / "out")]
    assert main(command) == 2
    error = capfd.readouterr().err
    assert "Red?[31m" in error and "\x1b" not in error and error.count("\n") == 1


def zipped(source: Path, target: Path, extra: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for file in source.iterdir():
            archive.write(file, file.name)
        for name, data in extra.items():
            archive.writestr(name, data)
    return target


def test_paths_in_a_zip_lead_nowhere(shared_bundle, tmp_path):
    names = {"../evil.txt": b"x", "/evil.txt": b"x", "C:\\evil.txt": b"x", "a/../../evil.txt": b"x"}
    bundle = Bundle.load(zipped(shared_bundle.path, tmp_path / "b.zip", names))
    assert bundle.onnx_bytes("fp32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.zip"]


def test_a_link_in_a_zip_is_not_followed(shared_bundle, tmp_path):
    target = tmp_path / "b.zip"
    with zipfile.ZipFile(target, "w") as archive:
        for file in shared_bundle.path.iterdir():
            if file.name != "spec.json":
                archive.write(file, file.name)
        link = zipfile.ZipInfo("spec.json")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(shared_bundle.path / "spec.json"))
    with pytest.raises(BundleError, match=r"spec.json .* is not the file"):
        Bundle.load(target)


@pytest.mark.parametrize(
    ("name", "compression", "message"),
    [
        ("spec.json", zipfile.ZIP_DEFLATED, "packed bytes claim to be 300000000"),
        ("model.fp32.onnx", zipfile.ZIP_DEFLATED, "packed bytes claim to be 300000000"),
        ("spec.json", zipfile.ZIP_STORED, "larger than 1 MiB"),
    ],
)
def test_a_bomb_is_read_no_further_than_its_limit(shared_bundle, tmp_path, name, compression, message):
    """300 MB of spaces pack to 300 kB; spec.json may be 1 MiB, networks more."""
    target = tmp_path / "b.zip"
    with zipfile.ZipFile(target, "w", compression) as archive:
        for file in shared_bundle.path.iterdir():
            if file.name != name:
                archive.write(file, file.name)
        with archive.open(name, "w") as entry:
            for _ in range(300):
                entry.write(b" " * 1_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BundleError, match=message):
        Bundle.load(target).onnx_bytes("fp32")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_a_list_of_entries_that_would_fill_the_memory_is_not_read(shared_bundle, tmp_path):
    target = zipped(shared_bundle.path, tmp_path / "b.zip", {f"{number:050d}": b"" for number in range(12_000)})
    with pytest.raises(BundleError, match="its list of entries takes"):
        Bundle.load(target)
    body = io.BytesIO((shared_bundle.path / "body.npz").read_bytes())
    with zipfile.ZipFile(body, "a") as archive:
        for number in range(12_000):
            archive.writestr(f"{number:050d}", b"")
    with pytest.raises(BundleError, match="its list of entries takes"):
        Bundle.load(with_body(shared_bundle.path, tmp_path / "b", body.getvalue()))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused(shared_bundle, tmp_path):
    spec = (shared_bundle.path / "spec.json").read_bytes()
    with pytest.raises(BundleError, match="two of its entries have one name"):
        Bundle.load(zipped(shared_bundle.path, tmp_path / "b.zip", {"spec.json": spec}))


def test_encrypted_entries_and_unknown_compression_are_refused(shared_bundle, tmp_path):
    target = zipped(shared_bundle.path, tmp_path / "b.zip", {})
    good = target.read_bytes()
    at = good.rindex(b"PK\x01\x02", 0, good.rindex(b"spec.json"))
    local = good.index(b"PK\x03\x04", good.index(b"spec.json") - 40)
    for offset, value, message in ((8, 1, "encrypted"), (10, 99, "compression")):
        data = bytearray(good)
        data[at + offset] = value
        data[local + offset - 2] = value
        target.write_bytes(data)
        with pytest.raises(BundleError, match=rf"spec.json .* cannot be read: .*{message}"):
            Bundle.load(target)


def test_links_in_a_folder_are_followed_and_checked(shared_bundle, tmp_path):
    """Model caches keep files as links; the hash tells what they lead to."""
    (tmp_path / "b").mkdir()
    for file in shared_bundle.path.iterdir():
        (tmp_path / "b" / file.name).symlink_to(file)
    assert Bundle.load(tmp_path / "b").onnx_bytes("fp32")
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "b" / "spec.json").unlink()
    (tmp_path / "b" / "spec.json").symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match=r"spec.json .* is not the file"):
        Bundle.load(tmp_path / "b")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(values: object, path: tuple = ()) -> list[tuple]:
    """Every place in nested JSON."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


def replaced(values, path: tuple, new):
    if not path:
        return new
    out = values.copy()
    out[path[0]] = replaced(values[path[0]], path[1:], new)
    return out


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_at_any_place_of_its_json_loads_and_prints_or_is_refused_in_words(
    shared_bundle, tmp_path_factory, data
):
    """With right hashes, so that every check behind them is reached; `info` reads all that is known of a passport."""
    folder = tmp_path_factory.mktemp("json")
    shutil.copytree(shared_bundle.path, folder / "b")
    spec = json.loads((folder / "b" / "spec.json").read_text())
    extra = {
        "calibration": {"samples": 3, "data": "x", "images_sha256": "0"},
        "folds": {"folds": [{"name": "batch_norm"}]},
        "verification": {"samples": 1, "precisions": {"fp16": {"moved_mm": 1.0}}},
    }
    both = {"spec": spec, "passport": shared_bundle.passport | extra}
    both = replaced(both, data.draw(st.sampled_from([p for p in places(both) if len(p) > 1])), data.draw(JSON))
    text = json.dumps(both["spec"]).encode()
    (folder / "b" / "spec.json").write_bytes(text)
    if isinstance(entry := both["passport"].get("files"), dict) and isinstance(entry.get("spec.json"), dict):
        both["passport"]["files"] = entry | {"spec.json": entry["spec.json"] | {"sha256": sha256_of(text)}}
    (folder / "b" / "passport.json").write_text(json.dumps(both["passport"]))
    with contextlib.suppress(BundleError, UserError):
        bundle = Bundle.load(folder / "b")
        assert all(printable(value).isprintable() for _, value in described(bundle))
        precision_table(bundle)
        for precision in bundle.precisions:
            bundle.accuracy(precision)


@pytest.fixture(scope="module")
def good_zip(shared_bundle, tmp_path_factory) -> bytes:
    target = zipped(shared_bundle.path, tmp_path_factory.mktemp("fuzz") / "b.zip", {})
    return target.read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bundles_load_or_are_refused_in_words(good_zip, tmp_path, data):
    damaged = bytearray(good_zip)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))]
    path = tmp_path / "b.zip"
    path.write_bytes(damaged)
    with contextlib.suppress(BundleError, UserError):
        bundle = Bundle.load(path)
        for precision in bundle.precisions:
            bundle.onnx_bytes(precision)
