"""TensorRT's timing cache: kernel times measured in one build, kept in a file for the next. It needs the GPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from metro_edge.errors import UserError
from metro_edge.files import reason, write_bytes
from metro_edge.plans.locks import locked

if TYPE_CHECKING:
    import tensorrt as stubs

LOGGER = logging.getLogger("metro_edge.plans")


@contextmanager
def timing_cache(config: stubs.IBuilderConfig, path: Path | None) -> Iterator[None]:
    """Use the cache in `path` for the build inside the block, and add to it what that measured.

    A cache of another library version or GPU is started anew, with a warning. Other builds that wrote the file
    meanwhile lose nothing: what they measured is merged.

    Raises:
        UserError: the file cannot be read or written.
    """
    if path is None:
        yield
        return
    cache = config.create_timing_cache(_read(path))
    if cache is None or not config.set_timing_cache(cache, False):
        LOGGER.warning("timing cache %s is of another library version or GPU; it is started anew", path)
        config.set_timing_cache(config.create_timing_cache(b""), False)
    yield
    measured = config.get_timing_cache()
    with locked(path.with_name(f".{path.name}.lock")):
        written = config.create_timing_cache(_read(path))
        if written is not None:
            measured.combine(written, False)
        write_bytes(path, bytes(measured.serialize()))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UserError(f"timing cache {path} cannot be read: {reason(error)}") from None
