"""Results of every kind, and a reader of pages that finds what they would load."""

from __future__ import annotations

import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from benchmarks.energy import SEGMENTS, entry_of
from tests.benchmarks.conftest import made_report
from tests.benchmarks.test_energy import frames_of, steady
from tests.test_layout import ROOT

VOID = {"meta", "img", "br", "hr", "link", "input"}
RESULTS = ROOT / "benchmarks" / "results"


class Page(HTMLParser):
    """What a browser would make of a page: tags, attributes, ids, text; `trouble` is what it would stumble over."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.trouble: list[str] = []
        self.words: list[str] = []
        self.tables: list[str] = []
        self.feed(text)
        self.close()
        self.trouble += [f"{tag} is left open" for tag in self.open]
        self.tables = [" ".join(table.split()) for table in self.tables]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.trouble.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
        if "table" in self.open:
            self.tables[-1] += data + " "

    @property
    def text(self) -> str:
        """All words that are shown."""
        return " ".join(" ".join(self.words).split())

    def values(self, name: str) -> list[str]:
        """Values of one attribute, in order."""
        return [value for _, key, value in self.attributes if key == name]


def check_contained(page: Page) -> None:
    """Nothing is run or loaded, every link inside the page has its place, and no id is there twice."""
    assert page.trouble == []
    assert not set(page.tags) & {"script", "iframe", "object", "embed", "link", "base", "form", "foreignobject"}
    assert [name for _, name, _ in page.attributes if name.startswith("on")] == []
    ids = page.values("id")
    assert max(Counter(ids).values()) == 1
    for name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster", "background"):
        for value in page.values(name):
            inside = value.startswith("#") and value[1:] in ids
            assert inside or value.startswith(("data:image/jpeg;base64,", "data:image/png;base64,")), value[:80]
    for value in page.values("style"):
        assert "url(" not in value or "url(#" in value
        assert "expression" not in value and "@import" not in value


def kept(kind: str) -> Path:
    """The newest committed result of a kind, which is real and small."""
    return max(RESULTS.glob(f"{kind}-*.json"))


def made_energy() -> dict[str, Any]:
    """Six seconds of two precisions at steady power and rising heat, as `energy` writes it."""

    def entry(watts: float) -> dict[str, Any]:
        return entry_of("engine", frames_of([0.1] * 60), [steady(2.0, 2.0)], [steady(watts, 6.0)])

    run = made_report()
    return {
        **{key: run[key] for key in ("created", "metro_edge", "bundle", "device", "machine", "intervals")},
        "schema_version": 1,
        "kind": "metro-edge energy",
        "command": "python -m benchmarks energy bundle",
        "device": run["device"] | {"power_mode": "MAXN"},
        "settings": {"seconds": 6.0, "idle_seconds": 2.0, "fps": None, "interval_ms": 250, "segments": SEGMENTS}
        | {"protocol": "made"},
        "precisions": {"fp32": entry(8.0), "int8": entry(5.0)},
    }


def saved(folder: Path, name: str, data: Any) -> Path:
    """Write a result."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path
