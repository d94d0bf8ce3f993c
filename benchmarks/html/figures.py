"""Plots as SVG that stands in the page itself and follows its colours, pictures as data: addresses.

Plots are drawn by the functions that draw them for files, in colours that stand for places of the page's palette; these
become CSS variables, so that one drawing serves light, dark and print. Text stays text, in the reader's own font.
"""

from __future__ import annotations

import base64
import html
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from engines.quantize.plots import COLOURS, LINE, OTHER

INK = "#010203"  # of axes and text; nothing else is drawn in it
# What is too dark or too pale for one of the page's two backgrounds -> variable of page.css.
VARIABLES = {
    INK: "ink", LINE: "ink", "#111111": "ink", "#000000": "ink", "#b0b0b0": "grid", OTHER: "other",
    COLOURS["fp32"]: "fp32", COLOURS["int8"]: "int8", COLOURS["fp16"]: "fp16", COLOURS["fp8"]: "fp8",
}  # fmt: skip
_COLOUR = re.compile("|".join(VARIABLES), re.IGNORECASE)
_DECIMALS = re.compile(r"(\d\.\d\d)\d+")
_BY_COLOUR = {colour.lower(): f"var(--{name})" for colour, name in VARIABLES.items()}
PICTURE_QUALITY = 88
LABEL = 48  # characters that a plot has room for
PACKED = {"samples_ms", "per_sample_mm"}
MAX_PICTURE_BYTES = 20_000_000


def figure_html(name: str, caption: str, draw: Callable[[Path], object], prediction: bool = False) -> str:
    """Return a <figure> of what `draw` writes to a path.

    Args:
        name: of letters, digits and hyphens, no other figure's of this page.
        caption: plain text.
        draw: one of the plot functions, which take the path of a file.
        prediction: mark it as such.

    Raises:
        MissingExtraError: no matplotlib.
    """
    mark = '<strong class="mark">Prediction</strong> ' if prediction else ""
    words = html.escape(caption)
    picture = svg(name, draw).replace("<svg ", f'<svg role="img" aria-label="{words}" ', 1)
    return (
        f'<figure class="plot" id="figure-{name}"><div class="scroll" tabindex="0">{picture}</div>'
        f"<figcaption>{mark}{words}</figcaption></figure>"
    )


def svg(name: str, draw: Callable[[Path], object]) -> str:
    """Return what `draw` writes, as an <svg> element whose ids begin with `name`."""
    import matplotlib

    parts = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = {
        **dict.fromkeys(parts, INK),
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "savefig.transparent": True,
    }
    with tempfile.TemporaryDirectory() as folder, matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")  # the reader's font may well have it
        path = Path(folder) / "plot.svg"
        draw(path)
        return _embedded(path.read_text(encoding="utf-8"), name)


def plain(value: Any) -> Any:
    """Return a result whose texts matplotlib shows as they are: a $ begins no formula, and none is endless."""
    if isinstance(value, dict):
        return {plain(key): one if key in PACKED else plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    if not isinstance(value, str):
        return value
    return (value if len(value) <= LABEL else f"{value[: LABEL - 1]}…").replace("$", r"\$")


def _embedded(text: str, name: str) -> str:
    """Return the element of an SVG file of matplotlib's, fit for a page with other such elements."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    start, rest = re.split(r"(?<=>)", text, maxsplit=1)
    box = re.search(r'viewBox="([\d. ]+)"', start)
    assert box is not None
    width = float(box[1].split()[2])
    start = f'<svg viewBox="{box[1]}" style="--width: {width:.0f}px">'
    rest = re.sub(r"<style.*?</style>", "", rest, count=1, flags=re.DOTALL)  # page.css has it
    rest = re.sub(r'\bid="', f'id="{name}-', rest)
    rest = rest.replace('xlink:href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    rest = rest.replace("xlink:href=", "href=")
    rest = re.sub(r'(<image\b[^>]*?) id="[^"]*"', r"\1", rest)  # the same for the same picture, and nothing needs it
    # Colours stand in style attributes and nowhere else; text between tags stays as it is.
    rest = re.sub(r'style="[^"]*"', lambda match: _themed(match[0]), rest)
    rest = re.sub(r"<[^>]*>", lambda match: _DECIMALS.sub(r"\1", match[0]), rest)
    return re.sub(r"\n\s*", "\n", start + rest).strip()


def _themed(style: str) -> str:
    style = re.sub(r"(\d+px) '?(DejaVu Sans|sans-serif)[^;\"]*", r"\1 var(--font)", style)
    style = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", style)
    return _COLOUR.sub(lambda match: _BY_COLOUR[match[0].lower()], style)


def picture_html(path: Path, caption: str) -> str:
    """Return a <figure> of a picture in a file, or in words that it is not there or none.

    Its pixels are written anew, so that nothing else of the file comes along.
    """
    words = html.escape(caption)
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_PICTURE_BYTES else b""
    except (OSError, ValueError):
        return f'<p class="absent">{words}: its picture {html.escape(path.name)} is not beside the result.</p>'
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if picture is None:
        return f'<p class="absent">{words}: {html.escape(path.name)} is not a picture.</p>'
    done, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, PICTURE_QUALITY])
    assert done  # a picture of bytes can always be encoded
    address = "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
    height, width = picture.shape[:2]
    return (
        f'<figure class="picture"><img src="{address}" alt="{words}" width="{width}" height="{height}">'
        f"<figcaption>{words}</figcaption></figure>"
    )
