"""The Markdown that our tables are, as HTML.

Only what benchmarks writes: headings, paragraphs, lists of one level, tables, `**bold**` and `code`. All text is
escaped and no address ever becomes a link or a picture, so that nothing of a stranger's result can leave the page.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

_CODE = re.compile(r"(`[^`]*`)")
_BOLD = re.compile(r"\*\*(?=\S)(.+?)(?<=\S)\*\*")
_HEADING = re.compile(r"(#{1,6}) (.+)")
_PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
_LINK = re.compile(r"\[([^\[\]]+)\]\([^()\s]*\)")
_CELL = re.compile(r"(?<!\\)\|")
_RULE = re.compile(r"\|( *:?-{3,}:? *\|)+")


@dataclass(frozen=True)
class Block:
    """A part of a page.

    Attributes:
        kind: `heading`, `paragraph`, `list` or `table`.
        html: of it.
    """

    kind: str
    html: str


def inline(text: str) -> str:
    """Return one line of Markdown as escaped HTML with bold and code."""
    parts = []
    for part in _CODE.split(text):
        if len(part) > 1 and part.startswith("`") and part.endswith("`"):
            parts.append(f"<code>{html.escape(part[1:-1])}</code>")
        else:
            parts.append(_BOLD.sub(r"<strong>\1</strong>", html.escape(_LINK.sub(r"\1", part))))
    return "".join(parts)


def to_blocks(markdown: str, level: int = 1) -> list[Block]:
    """Return the blocks of a text in order; pictures are left out.

    Args:
        markdown: as benchmarks writes it.
        level: what a heading of level 1 becomes, 1 to 6.
    """
    blocks: list[Block] = []
    for chunk in re.split(r"\n\s*\n", markdown.strip()):
        lines = [line for line in chunk.split("\n") if line.strip()]
        while lines:
            blocks += _take(lines, level)
    return blocks


def to_html(markdown: str, level: int = 1) -> str:
    """Return the HTML of a text; see `to_blocks`."""
    return "\n".join(block.html for block in to_blocks(markdown, level))


def _take(lines: list[str], level: int) -> list[Block]:
    """Take the first block off `lines`."""
    if len(lines) > 1 and lines[0].startswith("|") and _RULE.fullmatch(lines[1].strip()):
        taken = _while(lines, lambda line: line.startswith("|"))
        return [Block("table", _table(taken))]
    if lines[0].startswith("- "):
        taken = _while(lines, lambda line: line.startswith(("- ", "  ")))
        items: list[str] = []
        for line in taken:
            if line.startswith("- "):
                items.append(line[2:])
            else:
                items[-1] += " " + line.strip()
        return [Block("list", "<ul>\n" + "\n".join(f"<li>{inline(item)}</li>" for item in items) + "\n</ul>")]
    if match := _HEADING.fullmatch(lines[0]):
        del lines[0]
        rank = min(6, len(match[1]) + level - 1)
        return [Block("heading", f"<h{rank}>{inline(match[2])}</h{rank}>")]
    text = [lines.pop(0)]
    text += _while(lines, lambda line: not line.startswith(("- ", "|")) and not _HEADING.fullmatch(line))
    words = _PICTURE.sub("", " ".join(text)).strip()
    return [Block("paragraph", f"<p>{inline(words)}</p>")] if words else []


def _while(lines: list[str], keep) -> list[str]:
    count = next((i for i, line in enumerate(lines) if not keep(line)), len(lines))
    taken, lines[:] = lines[:count], lines[count:]
    return taken


def _table(lines: list[str]) -> str:
    """Return a table in a box of its own that scrolls sideways where the page is narrow."""
    header, rule, *rows = ([cell.strip() for cell in _CELL.split(line.strip())[1:-1]] for line in lines)
    right = [cell.endswith(":") for cell in rule]
    head = "".join(_cell("th", cell, flag, ' scope="col"') for cell, flag in zip(header, right, strict=False))
    body = [
        "<tr>" + "".join(_cell("td", cell, flag) for cell, flag in zip(row, right, strict=False)) + "</tr>"
        for row in rows
    ]
    inside = f"<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody>"
    return f'<div class="scroll" tabindex="0"><table>\n{inside}\n</table></div>'


def _cell(tag: str, text: str, right: bool, more: str = "") -> str:
    side = ' class="number"' if right else ""
    return f"<{tag}{side}{more}>{inline(text.replace(chr(92) + '|', '|'))}</{tag}>"
