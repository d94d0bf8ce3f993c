"""`python -m benchmarks publish`: the newest results of a folder as one leaderboard, and published figures apart."""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.html.boards import BOARDS, TEXT_COLUMNS, Board, Row, mm
from benchmarks.html.convert import to_html
from benchmarks.html.kinds import KINDS, RUN, groups, guarded
from benchmarks.html.page import Section, page_html
from benchmarks.html.reading import Result, read_result
from benchmarks.markdown import markdown_table
from benchmarks.published import COLLECTED_IN, PROTOCOLS, PUBLISHED, SUCCESSORS, Published
from metro_edge.errors import UserError
from metro_edge.files import reason, replacing

NO_LEADERS = (
    "Only what was measured is ranked here, on each device by time, under load by cameras; results of other data or "
    "protocols stand in tables of their own"
)


def publish(folder: Path, output: Path, markdown_output: Path, command: str = "") -> None:
    """Write the leaderboard of all `.json` files of a folder as a page and as Markdown, both or none.

    Raises:
        UserError: a folder that is missing or has no results, a file in it that is none, or outputs that cannot be
            written.
    """
    results = read_folder(folder)
    text, page = leaderboard_markdown(results, command), leaderboard_html(results, command)
    with replacing(output) as page_file, replacing(markdown_output) as markdown_file:
        page_file.write_text(page, encoding="utf-8")
        # A stranger's words are words in Markdown, too: neither markup nor a link.
        markdown_file.write_text(text.replace("<", "&lt;").replace("](", "] ("), encoding="utf-8")


def read_folder(folder: Path) -> list[Result]:
    """Return the results of a folder by name; raises UserError as `publish`."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json" and path.is_file())
    except OSError as error:
        raise UserError(f"cannot read the folder of results {folder}: {reason(error)}") from None
    if not paths:
        raise UserError(f"{folder} has no .json file: `python -m benchmarks run BUNDLE -o {folder}` writes them")
    return [read_result(path) for path in paths]


def leaderboard_markdown(results: Sequence[Result], command: str = "") -> str:
    """Return the leaderboard as Markdown."""
    parts = ["# Leaderboard", _intro(results, command)]
    for title, text in _parts(results):
        parts += [f"## {title}", text]
    return "\n\n".join(parts) + "\n"


def leaderboard_html(results: Sequence[Result], command: str = "") -> str:
    """Return the leaderboard as a page."""
    sections = [
        Section(f"part-{number}", title, to_html(text, level=1))
        for number, (title, text) in enumerate(_parts(results), start=1)
    ]
    lead = "\n".join(f'<p class="soft">{part}</p>' for part in html.escape(_intro(results, command)).split("\n\n"))
    return page_html("metro-edge leaderboard", lead.replace("`", ""), sections)


def run_table(results: Sequence[Result], numbers: Sequence[str] = ()) -> str:
    """Return one table of comparable results of `run`, in their order; `numbers` names each of them."""
    board = BOARDS[RUN]
    rows = [
        ([numbers[place]] if numbers else []) + row.cells
        for place, result in enumerate(results)
        for row in guarded(result, partial(board.rows, result.data))
    ]
    header = (("no.",) if numbers else ()) + board.header
    return markdown_table(header, rows, TEXT_COLUMNS)


def _intro(results: Sequence[Result], command: str) -> str:
    shown = sum(result.kind in BOARDS for result in results)
    count = "1 result" if shown == 1 else f"{shown} results"
    again = f" Again: `{command}`." if command else ""
    return f"Of {count}, the newest of each bundle, device, backend and precision. {NO_LEADERS}.{again}"


def _parts(results: Sequence[Result]) -> list[tuple[str, str]]:
    parts = []
    for kind, board in BOARDS.items():
        found = [result for result in results if result.kind == kind]
        for number, group in enumerate(sorted_out := groups(KINDS[kind], found), start=1):
            title = KINDS[kind].title + (f", {number} of {len(sorted_out)}" if len(sorted_out) > 1 else "")
            parts.append((title, _board(board, group)))
    parts.append(("Published results, of other data: not comparable with the above", published_tables()))
    return parts


def _board(board: Board, group: Sequence[Result]) -> str:
    newest: dict[tuple[str, ...], Row] = {}
    for result in group:
        for row in guarded(result, partial(board.rows, result.data)):
            if row.key not in newest or newest[row.key].created <= row.created:
                newest[row.key] = row
    rows = sorted(newest.values(), key=lambda row: (row.group, row.rank))
    notes = "\n".join(f"- {note}" for note in board.notes(group[-1].data))
    files = ", ".join(f"`{result.name}`" for result in group)
    return f"{markdown_table(board.header, [row.cells for row in rows], TEXT_COLUMNS)}\n\n{notes}\n- Files: {files}."


def published_tables() -> str:
    """Return the tables of published figures with their sources; METRO's own and successors."""
    names = ("Human3.6M MPJPE", "Human3.6M PA-MPJPE", "3DPW MPVPE", "3DPW MPJPE", "3DPW PA-MPJPE")
    known = {True: "yes", False: "no", None: "not said"}
    before = [[one.method, *_figures(one), one.paper] for one in PUBLISHED]
    after = [
        [one.method, *_figures(one), known[one.dpw_in_training], one.training, one.paper, one.source]
        for one in SUCCESSORS
    ]
    text = ("method", "paper", "3DPW in training", "trained on", "read in")
    return "\n\n".join(
        [
            "METRO and what it was compared with, mm",
            markdown_table(("method", *names, "paper"), before, text),
            f"- Figures as reported by the papers and collected in {COLLECTED_IN}. {PROTOCOLS}.\n"
            "- METRO was fine-tuned on 3DPW's training set for its 3DPW figures (docs/EXP.md of "
            "github.com/microsoft/MeshTransformer); for the others that table does not say.",
            "Successors, mm",
            markdown_table(("method", *names, *text[2:4], "paper", text[4]), after, text),
            "- As read in the last column, nowhere else; a dash where it gives none. They differ in training data, "
            "backbones and the joints that are evaluated, so that they are not strictly comparable with one another "
            "either. Methods whose figures could not be read in a source are left out, HMR 2.0 among them.\n"
            "- None of these methods was run here, and our network was not run on these data sets.",
        ]
    )


def _figures(one: Published) -> list[str]:
    found = (one.h36m_mpjpe_mm, one.h36m_pa_mpjpe_mm, one.dpw_mpvpe_mm, one.dpw_mpjpe_mm, one.dpw_pa_mpjpe_mm)
    return [mm(value) for value in found]
