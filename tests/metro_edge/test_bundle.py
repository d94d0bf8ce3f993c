from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from metro_edge import bundle as bundle_module
from metro_edge.bundle import Bundle, check_replaceable, onnx_file, shipped_bundle_path, write_bundle
from metro_edge.errors import BundleError, UserError
from metro_edge.files import sha256_of

FILES = ["body.npz", "model.fp16.onnx", "model.fp32.onnx", "model.int8.onnx", "passport.json", "spec.json"]


@pytest.fixture(params=["folder", "zip", "zip of a folder"])
def bundle(request, tmp_path, shared_bundle, template, spec, onnx_files, passport) -> Bundle:
    """A bundle of its own in each of the forms."""
    if request.param == "folder":
        return write_bundle(tmp_path / "b", spec, template, onnx_files, passport)
    if request.param == "zip":
        return write_bundle(tmp_path / "b.zip", spec, template, onnx_files, passport)
    shutil.make_archive(str(tmp_path / "b"), "zip", shared_bundle.path.parent, shared_bundle.path.name)
    return Bundle.load(tmp_path / "b.zip")


def rewrite(bundle: Bundle, name: str, data: bytes | None) -> None:
    """Replace a file of a bundle, or remove it."""
    if bundle.path.is_dir():
        (bundle.path / name).unlink()
        if data is not None:
            (bundle.path / name).write_bytes(data)
        return
    with zipfile.ZipFile(bundle.path) as archive:
        contents = {entry: archive.read(entry) for entry in archive.namelist() if not entry.endswith("/")}
    key = next(entry for entry in contents if entry.endswith(name))
    contents[key] = data
    with zipfile.ZipFile(bundle.path, "w") as archive:
        for entry, content in contents.items():
            if content is not None:
                archive.writestr(entry, content)


def test_round_trip(bundle, spec, template, onnx_files, passport):
    again = Bundle.load(bundle.path)
    assert again.spec == spec
    np.testing.assert_array_equal(again.template.vertices, template.vertices)
    assert again.precisions == ("fp32", "fp16", "int8")
    for precision, source in onnx_files.items():
        assert again.onnx_bytes(precision) == source.read_bytes()
        assert again.onnx_sha256(precision) == sha256_of(source.read_bytes())
    for key, value in passport.items():
        assert again.passport[key] == value
    assert again.passport["files"].keys() == set(FILES) - {"passport.json"}
    assert again.accuracy("int8") == {"mpjpe_mm": 62.5, "pa_mpjpe_mm": 42.0, "mpvpe_mm": 73.0, "moved_mm": 1.25}
    assert again.accuracy("fp16") is None


def test_folder_holds_exactly_the_files_and_nothing_is_left_beside(tmp_path, spec, template, onnx_files, passport):
    write_bundle(tmp_path / "deep" / "b", spec, template, onnx_files, passport)
    assert sorted(p.name for p in (tmp_path / "deep" / "b").iterdir()) == FILES
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["b"]


@pytest.mark.parametrize("name", ["b", "b.zip"])
def test_an_older_bundle_is_replaced(tmp_path, spec, template, onnx_files, passport, name):
    write_bundle(tmp_path / name, spec, template, onnx_files, passport)
    newer = write_bundle(tmp_path / name, spec, template, {"fp16": onnx_files["fp16"]}, passport)
    assert newer.precisions == ("fp16",) == Bundle.load(tmp_path / name).precisions
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with pytest.raises(BundleError, match="no fp32 network; it has fp16"):
        newer.onnx_bytes("fp32")


def test_paths_of_onnx_files(bundle):
    if bundle.path.is_dir():
        assert bundle.onnx_path("fp16") == bundle.path / "model.fp16.onnx"
    else:
        with pytest.raises(BundleError, match="unpack"):
            bundle.onnx_path("fp16")
    with pytest.raises(BundleError, match="has no fp8 network; it has fp32, fp16, int8"):
        bundle.onnx_path("fp8")
    with pytest.raises(UserError, match="unknown precision 'fp64'; known: fp32, fp16, int8, fp8"):
        bundle.onnx_path("fp64")


def test_fp8(tmp_path, spec, template, onnx_files, passport, network):
    """For GPUs; `python -m engines quantize` makes it."""
    onnx.save(network("fp8"), tmp_path / "fp8.onnx")
    files = {"fp32": onnx_files["fp32"], "fp8": tmp_path / "fp8.onnx"}
    bundle = write_bundle(tmp_path / "b", spec, template, files, passport)
    assert bundle.precisions == ("fp32", "fp8") == Bundle.load(bundle.path).precisions
    assert bundle.onnx_path("fp8").name == "model.fp8.onnx" and bundle.accuracy("fp8") is None


@pytest.mark.parametrize("name", ["spec.json", "body.npz"])
def test_altered_or_missing_small_files_are_named_on_loading(bundle, name):
    rewrite(bundle, name, b"{}")
    with pytest.raises(BundleError, match=rf"{name} .*is not the file that passport.json names; convert"):
        Bundle.load(bundle.path)
    rewrite(bundle, name, None)
    with pytest.raises(BundleError, match=f"{name} is missing"):
        Bundle.load(bundle.path)


def test_altered_or_missing_networks_are_named_when_asked_for(bundle):
    data = bytearray(bundle.onnx_bytes("fp32"))
    data[len(data) // 2] ^= 1  # one bit
    rewrite(bundle, "model.fp32.onnx", bytes(data))
    rewrite(bundle, "model.int8.onnx", None)
    again = Bundle.load(bundle.path)  # what is not asked for is not read
    with pytest.raises(BundleError, match=r"model.fp32.onnx .* not the file"):
        again.onnx_bytes("fp32")
    with pytest.raises(BundleError, match=r"model.int8.onnx is missing"):
        again.onnx_bytes("int8")
    assert again.onnx_bytes("fp16")


def test_missing_passport(bundle):
    rewrite(bundle, "passport.json", None)
    with pytest.raises(BundleError, match=r"passport.json is missing"):
        Bundle.load(bundle.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema version 2, this metro-edge reads 1"),
        ({"files": None}, "'files' must be an object"),
        ({"files": {"spec.json": {"sha256": "0"}}}, "files must be"),
        ({"licences": "free"}, "'licences' must be an object"),
        ({"versions": []}, "'versions' must be an object"),
        ({"checkpoint": {"name": "x"}}, "checkpoint 'sha256' must be text"),
        ({"accuracy": {"precisions": {"fp32": {"mpjpe_mm": 1}}}}, "accuracy of fp32 lacks 'pa_mpjpe_mm'"),
        ({"accuracy": {"precisions": 3}}, "not complete"),
    ],
)
def test_passports_that_are_not_complete(bundle, change, message):
    rewrite(bundle, "passport.json", json.dumps({**bundle.passport, **change}).encode())
    with pytest.raises(BundleError, match=message):
        Bundle.load(bundle.path)


def test_passport_entries(bundle):
    for files, message in (
        ({**bundle.passport["files"], "../evil": {"sha256": "0"}}, "files must be"),
        ({**bundle.passport["files"], "spec.json": {"bytes": 3}}, "spec.json has no 'sha256'"),
    ):
        rewrite(bundle, "passport.json", json.dumps({**bundle.passport, "files": files}).encode())
        with pytest.raises(BundleError, match=message):
            Bundle.load(bundle.path)
    for text in (b"[1]", b"no json", b"\xff\xfe"):
        rewrite(bundle, "passport.json", text)
        with pytest.raises(BundleError, match="not a JSON object"):
            Bundle.load(bundle.path)


def with_hash_of(bundle: Bundle, name: str, data: bytes) -> None:
    """Replace a file and its hash."""
    files = {**bundle.passport["files"], name: {"sha256": sha256_of(data), "bytes": len(data)}}
    rewrite(bundle, name, data)
    rewrite(bundle, "passport.json", json.dumps({**bundle.passport, "files": files}).encode())


def test_parts_that_do_not_belong_together_or_are_no_such_files(bundle, spec):
    for name, data, message in (
        ("spec.json", dataclasses.replace(spec, body="ham").to_json().encode(), "the spec's body is ham"),
        ("spec.json", b"\xff\xff", "codec can't decode"),
        ("spec.json", b"{}", "schema version None"),
        ("body.npz", b"no zip", "not a readable body template"),
    ):
        with_hash_of(bundle, name, data)
        with pytest.raises(BundleError, match=message):
            Bundle.load(bundle.path)
        with_hash_of(bundle, "spec.json", spec.to_json().encode())


def test_files_of_absurd_size_are_refused(bundle, monkeypatch):
    monkeypatch.setattr(bundle_module, "_ONNX_LIMIT", 1000)
    with pytest.raises(BundleError, match=r"model.fp32.onnx .* larger than"):
        Bundle.load(bundle.path).onnx_bytes("fp32")
    monkeypatch.setattr(bundle_module, "_BODY_LIMIT", 1000)
    with pytest.raises(BundleError, match="unpacks to"):
        Bundle.load(bundle.path)


def test_zips_that_are_none_or_ambiguous(tmp_path, shared_bundle):
    path = tmp_path / "b.zip"
    path.write_bytes(b"PK no zip")
    with pytest.raises(BundleError, match="neither a folder nor a readable .zip"):
        Bundle.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        for folder in ("a", "b"):
            for file in shared_bundle.path.iterdir():
                archive.write(file, f"{folder}/{file.name}")
    with pytest.raises(BundleError, match="more than once"):
        Bundle.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../passport.json", "{}")
        archive.writestr("a/b/passport.json", "{}")
    with pytest.raises(BundleError):
        Bundle.load(path)


def test_a_damaged_zip_entry_is_named(tmp_path, shared_bundle):
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in shared_bundle.path.iterdir():
            archive.write(file, file.name)
    data = bytearray(path.read_bytes())
    at = data.index(shared_bundle.onnx_bytes("fp32"))
    data[at + 40] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=r"model.fp32.onnx .* cannot be read: .*CRC"):
        Bundle.load(path).onnx_bytes("fp32")


def test_places_without_a_bundle(tmp_path, monkeypatch):
    with pytest.raises(BundleError, match="no bundle at"):
        Bundle.load(tmp_path / "none")
    with pytest.raises(BundleError, match="passport.json is missing"):
        Bundle.load(tmp_path)
    monkeypatch.setattr(bundle_module, "shipped_bundle_path", lambda: tmp_path / "none")
    with pytest.raises(BundleError, match="this installation of metro-edge has no bundle"):
        Bundle.load()
    assert shipped_bundle_path().parts[-3:] == ("metro_edge", "assets", "bundle")


def test_the_default_is_the_shipped_bundle(shared_bundle, monkeypatch):
    monkeypatch.setattr(bundle_module, "shipped_bundle_path", lambda: shared_bundle.path)
    assert Bundle.load().spec == shared_bundle.spec


def test_writing_refuses_what_does_not_fit(tmp_path, spec, template, onnx_files, passport):
    def write(path: Path, **changes) -> None:
        parts = {"spec": spec, "template": template, "onnx": onnx_files, "passport": passport, **changes}
        write_bundle(path, **parts)

    target = tmp_path / "b"
    with pytest.raises(UserError, match="at least one ONNX"):
        write(target, onnx={})
    with pytest.raises(UserError, match="unknown precision"):
        write(target, onnx={"fp64": onnx_files["fp32"]})
    with pytest.raises(UserError, match="5 vertices"):
        write(target, spec=dataclasses.replace(spec, vertex_count=5))
    with pytest.raises(UserError, match="no regressor"):
        write(target, spec=dataclasses.replace(spec, joint_set="coco17"))
    with pytest.raises(BundleError, match="'licences'"):
        write(target, passport={k: v for k, v in passport.items() if k != "licences"})
    for value in (np.nan, object()):
        with pytest.raises(BundleError, match="JSON"):
            write(target, passport={**passport, "extra": value})
    with pytest.raises(UserError, match="cannot write bundle .*No such file"):
        write(target, onnx={"fp32": tmp_path / "missing.onnx"})
    assert list(tmp_path.iterdir()) == []


def test_writing_keeps_what_is_not_a_bundle(tmp_path, spec, template, onnx_files, passport):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.zip").mkdir()
    for name, message in (
        ("mine", "neither empty nor a bundle"),
        ("file", "is not a folder"),
        ("folder.zip", "is not a file"),
        ("file/below", "cannot write"),
    ):
        with pytest.raises(UserError, match=message):
            write_bundle(tmp_path / name, spec, template, onnx_files, passport)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    (tmp_path / "empty").mkdir()
    assert write_bundle(tmp_path / "empty", spec, template, onnx_files, passport).precisions


def test_a_failed_swap_puts_the_older_bundle_back(tmp_path, spec, template, onnx_files, passport, monkeypatch):
    write_bundle(tmp_path / "b", spec, template, onnx_files, passport)
    real = bundle_module.os.rename
    calls = []

    def fail_second(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(bundle_module.os, "rename", fail_second)
    with pytest.raises(UserError, match="No space left"):
        write_bundle(tmp_path / "b", spec, template, {"fp32": onnx_files["fp32"]}, passport)
    monkeypatch.undo()
    assert Bundle.load(tmp_path / "b").precisions == ("fp32", "fp16", "int8")


def test_onnx_file_names():
    assert onnx_file("int8") == "model.int8.onnx"
    with pytest.raises(UserError, match="unknown precision"):
        onnx_file("int4")


def test_places_that_the_system_refuses_to_look_at(tmp_path, monkeypatch):
    with pytest.raises(BundleError, match="no bundle: cannot look at .*File name too long"):
        Bundle.load(tmp_path / ("a" * 300))
    with pytest.raises(UserError, match="File name too long"):
        check_replaceable(tmp_path / ("a" * 300))

    def refuse(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)  # root may look anywhere
    with pytest.raises(UserError, match="cannot look into folder .*Permission denied"):
        check_replaceable(tmp_path)
