"""The documentation: its commands parse, its links lead somewhere, and each data set's page says what it must."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from metro_edge import cli
from training.protocols import PROTOCOLS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DATA_SETS = sorted(page for page in (ROOT / "docs" / "datasets").glob("*.md") if page.name != "README.md")
PLACEHOLDERS = {"NAME": "up3d"}  # of choices that a page leaves to the reader


def blocks(page: Path, kind: str = "") -> list[str]:
    """The contents of a page's fenced blocks of one kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line of our own programs in the pages, continued lines joined."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            for line in block.replace("\\\n", " ").splitlines():
                words = re.split(r"\s+#", line)[0].strip()
                if re.match(r"(metro-edge|python -m (training|engines|benchmarks)|torchrun .* -m training) ", words):
                    found.append((str(page.relative_to(ROOT)), words))
    return found


def parser_of(package: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers(required=True)
    for name in importlib.import_module(f"{package}.__main__").COMMANDS:
        importlib.import_module(f"{package}.commands.{name}").add_parser(subparsers)
    return parser


def test_there_are_commands() -> None:
    pages = {page for page, _ in commands()}
    assert len(commands()) > 30 and {str(page.relative_to(ROOT)) for page in DATA_SETS} - pages <= {
        "docs/datasets/coco.md"
    }


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_parse(page: str, command: str) -> None:
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(re.sub(r"[\[\]]", "", command)) if word != "..."]
    if words[0] == "metro-edge":
        parser, arguments = cli.build_parser(), words[1:]
    else:
        at = words.index("-m") + 1
        parser, arguments = parser_of(words[at]), words[at + 1 :]
    parser.parse_args(arguments)  # exits when it does not know them


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {"#" + re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, f"{target}{anchor}"


@pytest.mark.parametrize("page", DATA_SETS, ids=lambda page: page.stem)
def test_a_data_sets_page_has_its_folder_its_command_and_what_to_expect(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    plain = [block for block in blocks(page) if "python" not in block and "pip" not in block]
    assert any(re.search(r"^[\w.]+/", block, re.MULTILINE) for block in plain), "no folder"
    assert re.search(r"python -m training (evaluate|fit) ", text), "no command"
    assert re.search(r"[Ee]xpect|report for their predictions", text), "no number to expect"
    for claim in ("have not run the real data here", "have not\nrun the real data here", "not run the\nreal data here"):
        if claim in text.replace("**", ""):
            return
    pytest.fail("the page does not say that the real data were not run")


@pytest.mark.parametrize("name", [name for name, one in PROTOCOLS.items() if one.published])
def test_published_rows_are_the_protocols(name: str) -> None:
    """The numbers to expect are written once more, on the data set's page and the page of protocols."""
    pages = {"human36m-p2": "human36m", "3dpw-neutral": "3dpw", "freihand": "freihand"}
    page = (ROOT / "docs" / "datasets" / f"{pages[name]}.md").read_text(encoding="utf-8")
    overview = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    row = next(line for line in overview.splitlines() if line.startswith(f"| `{name}`"))
    for value in PROTOCOLS[name].published.values():
        assert str(value) in page and str(value) in row, (name, value)


def test_attention_maps_on_request() -> None:
    (block,) = [block for block in blocks(ROOT / "docs" / "training.md", "python") if "return_attention" in block]
    names: dict[str, Any] = {}
    exec(block, names)
    assert tuple(names["joint_to_vertices"].shape) == (1, 14, 146)
    assert names["layer"].shape[1:] == (160, 160)
    assert float((names["layer"].sum(-1) - 1).abs().max()) < 1e-4
