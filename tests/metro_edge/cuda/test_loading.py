"""Which image is loaded, in what order, and what is said of it."""

from __future__ import annotations

import builtins
import logging
import sys
import threading

import pytest

from metro_edge.cuda import loading, prebuilt, toolchain
from metro_edge.cuda.loading import Image, KernelLoader, load_pycuda, shipped_or_compiled
from metro_edge.errors import MissingExtraError, UserError
from tests.virtual_gpu.device import host_image, on_stand_in


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A folder of kernels with one file, and compilers that say what they were asked."""
    (tmp_path / "preprocess.cu").write_text("// a kernel")
    for module in (toolchain, prebuilt):
        monkeypatch.setattr(module, "KERNELS", tmp_path)
    monkeypatch.setattr(toolchain, "compile_with_nvcc", lambda name, arch: (f"nvcc {name} {arch}".encode(), ""))
    monkeypatch.setattr(toolchain, "compile_with_nvrtc", lambda name, arch: f"nvrtc {name} {arch}".encode())
    return tmp_path


def refuse(*_: object) -> bytes:
    raise toolchain.CompileError("not here")


def test_cubin_then_ptx_then_compilers(kernels):
    (kernels / "preprocess.sm_87.cubin").write_bytes(b"cubin")
    (kernels / "preprocess.ptx").write_text(f"// sources {prebuilt.source_hash('preprocess')}\nptx")
    images = list(shipped_or_compiled("preprocess", (8, 7)))
    assert [image.origin for image in images] == [
        "cubin preprocess.sm_87.cubin",
        "shipped PTX preprocess.ptx",
        "sm_87 compiled by nvcc",
        "sm_87 compiled by NVRTC",
    ]
    assert images[0].data == b"cubin"
    assert images[1].data.endswith(b"\nptx\0")
    assert images[2].data == b"nvcc preprocess sm_87"
    # For another GPU the cubin is not right, the PTX is.
    assert next(shipped_or_compiled("preprocess", (12, 0))).origin == "shipped PTX preprocess.ptx"


def test_no_compiler_runs_while_the_first_image_does(kernels, monkeypatch):
    monkeypatch.setattr(toolchain, "compile_with_nvcc", refuse)
    (kernels / "preprocess.sm_87.cubin").write_bytes(b"cubin")
    assert next(shipped_or_compiled("preprocess", (8, 7))).data == b"cubin"


@pytest.mark.parametrize("changed", ["preprocess.cu", "common.cuh"])
def test_ptx_of_other_sources_is_left_out_with_a_word(kernels, caplog, changed):
    (kernels / "common.cuh").write_text("// shared")
    (kernels / "preprocess.ptx").write_text(f"// sources {prebuilt.source_hash('preprocess')}\nptx")
    assert prebuilt.read_ptx("preprocess") is not None
    (kernels / changed).write_text("// another")
    with caplog.at_level(logging.INFO, "metro_edge.cuda"):
        origins = [image.origin for image in shipped_or_compiled("preprocess", (8, 7))]
    assert origins[0] == "sm_87 compiled by nvcc"
    assert "made from other sources" in caplog.text


def test_a_compiler_that_is_missing_is_logged_and_passed_over(kernels, caplog, monkeypatch):
    monkeypatch.setattr(toolchain, "compile_with_nvcc", refuse)
    with caplog.at_level(logging.INFO, "metro_edge.cuda"):
        assert [image.origin for image in shipped_or_compiled("preprocess", (8, 7))] == ["sm_87 compiled by NVRTC"]
    assert "preprocess: not here" in caplog.text


@pytest.mark.gpu
def test_what_the_driver_refuses_is_logged_and_the_next_image_is_taken(device, caplog):
    if not on_stand_in():
        pytest.skip("a real driver does not take the next image, a library of the host")

    def choose(name, capability):
        assert capability == (8, 7)
        yield Image("PTX from the future", b"// .version 99\0")
        yield from host_image(name, capability)

    loader = KernelLoader(choose)
    with caplog.at_level(logging.INFO, "metro_edge.cuda"):
        function = loader.function("preprocess", "crop")
    assert "preprocess: the driver refuses the PTX from the future" in caplog.text
    assert "UNSUPPORTED_PTX_VERSION" in caplog.text
    assert "preprocess: library of the host on Virtual GPU" in caplog.text
    before = device.count("cuModuleLoadData") + device.count("cuModuleLoadDataEx")
    assert loader.function("preprocess", "crop") is function
    loader.function("preprocess", "crop_resized")
    assert device.count("cuModuleLoadData") + device.count("cuModuleLoadDataEx") == before


@pytest.mark.gpu
def test_without_any_image_the_way_out_is_said(device):
    loader = KernelLoader(lambda name, capability: iter([Image("wrong one", b"// nothing\0")]))
    with pytest.raises(UserError, match=r"no image of the kernels preprocess .*wrong one: .*pip install nvidia-cuda"):
        loader.function("preprocess", "crop")
    with pytest.raises(UserError, match="there is no prebuilt one"):
        KernelLoader(lambda name, capability: iter(())).function("preprocess", "crop")


@pytest.mark.gpu
def test_a_thread_without_context_is_told_so(device):
    errors: list[Exception] = []

    def work() -> None:
        try:
            KernelLoader(host_image).function("preprocess", "crop")
        except UserError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "no CUDA context in this thread" in str(errors[0])


@pytest.mark.parametrize(("error", "kind", "text"), [
    (ModuleNotFoundError("no module"), MissingExtraError, r"pip install 'metro-edge\[tensorrt\]'"),
    (ImportError("libcuda.so.1: cannot open"), UserError, "does not find the CUDA driver: libcuda"),
])  # fmt: skip
def test_pycuda_or_a_driver_that_is_missing(monkeypatch, error, kind, text):
    original = builtins.__import__

    def no_pycuda(name, *rest):
        if name.startswith("pycuda"):
            raise error
        return original(name, *rest)

    for name in [name for name in sys.modules if name.split(".")[0] == "pycuda"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", no_pycuda)
    with pytest.raises(kind, match=text):
        load_pycuda()


def test_the_module_says_what_it_logs_to():
    assert loading.LOGGER.name == prebuilt.LOGGER.name == "metro_edge.cuda"
