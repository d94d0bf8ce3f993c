"""One page of one file: no script, font, picture or style from anywhere else, and a policy that forbids them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

STYLE = Path(__file__).with_name("page.css")
# Even if some text slipped through unescaped, a browser would neither run nor fetch anything.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Section:
    """A part of a page with a place in its contents.

    Attributes:
        anchor: of letters, digits and hyphens, no other section's.
        title: plain text.
        html: what follows its heading.
        parts: sections inside it, one level down.
    """

    anchor: str
    title: str
    html: str
    parts: Sequence[Section] = field(default_factory=tuple)


def page_html(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return a whole page: title, lead (HTML), contents and sections."""
    body = "\n".join(_section(section) for section in sections)
    style = STYLE.read_text(encoding="utf-8")
    words = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{words}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<header>\n<h1>{words}</h1>\n{lead}\n</header>\n<nav aria-label="Contents">\n<h2>Contents</h2>\n'
        f"{_contents(sections)}\n</nav>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _contents(sections: Sequence[Section]) -> str:
    lines = []
    for section in sections:
        inside = f"\n{_contents(section.parts)}\n" if section.parts else ""
        lines.append(f'<li><a href="#{section.anchor}">{html.escape(section.title)}</a>{inside}</li>')
    return "<ul>\n" + "\n".join(lines) + "\n</ul>"


def _section(section: Section) -> str:
    parts = "\n".join(
        f'<article id="{part.anchor}">\n<h3>{html.escape(part.title)}</h3>\n{part.html}\n</article>'
        for part in section.parts
    )
    several = " several" if len(section.parts) > 1 else ""
    results = f'\n<div class="results{several}">\n{parts}\n</div>' if parts else ""
    return (
        f'<section id="{section.anchor}">\n<h2>{html.escape(section.title)}</h2>\n{section.html}{results}\n</section>'
    )
