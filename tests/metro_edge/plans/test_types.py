"""mypy checks the calls of TensorRT against its stubs, and would find a name that is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tensorrt_types import readable

ROOT = Path(__file__).resolve().parents[3]
TYPES = ROOT / ".venv" / "types"

STUB = """\
from __future__ import annotations
import typing
bool: DataType  # value = <DataType.BOOL: 4>
class Flag:
    ONE: typing.ClassVar[Flag]  # value = <Flag.ONE: 0>
    def good(self, value: int = 0) -> bool:
        ...
    def bad(self, value: int = 0, other: str) -> bool:
        ...
    @property
    def kept(self) -> int:
        ...
    @kept.setter
    def kept(self, value: <broken>) -> None:
        ...
def gone(<broken>) -> None: ...
"""


def test_what_is_no_python_is_left_out() -> None:
    text = readable(STUB)
    compile(text, "stub", "exec")
    assert "def good(self, value: int = 0) -> bool:" in text
    assert "def bad(self, *args: typing.Any, **kwargs: typing.Any) -> typing.Any: ..." in text
    assert "def kept(self) -> int:" in text and "<broken>" not in text
    assert "bool: DataType" not in text and "__version__: str" in text


@pytest.mark.slow
@pytest.mark.skipif(not TYPES.is_dir(), reason="TensorRT's stubs are not there: make lint fetches them")
def test_mypy_finds_a_name_that_tensorrt_lacks(tmp_path: Path) -> None:
    source = tmp_path / "wrong.py"
    source.write_text(
        "from metro_edge.plans.versions import Library\n"
        "def use(trt: Library) -> None:\n"
        "    config = trt.Builder(None).create_builder_config()\n"
        "    config.clear_flag(trt.BuilderFlag.TF32)\n"
        "    config.set_flag(trt.BuilderFlag.NO_SUCH_FLAG)\n"
        "    config.no_such_setting = 3\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-incremental", "--no-pretty", str(source)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(TYPES)},
    )
    assert done.returncode == 1
    assert '"type[BuilderFlag]" has no attribute "NO_SUCH_FLAG"' in done.stdout
    assert '"IBuilderConfig" has no attribute "no_such_setting"' in done.stdout
    assert "TF32" not in done.stdout
