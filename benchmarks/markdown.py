"""Cells and tables of Markdown."""

from __future__ import annotations

NONE = "-"


def markdown_table(
    header: tuple[str, ...], rows: list[list[str]], text_columns: tuple[str, ...] = ("precision",)
) -> str:
    """Return a Markdown table, numbers to the right. Raises ValueError for rows of another length."""
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"each row needs {len(header)} cells")
    rule = ["---" if name in text_columns else "---:" for name in header]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [list(header), rule, *escaped])


def number(value: float | None, digits: int, signed: bool = False) -> str:
    """Return a figure to so many digits, NONE for None."""
    if value is None:
        return NONE
    # Rounding first and adding 0.0 turns -0.00 into 0.00.
    return f"{round(value, digits) + 0.0:{'+' if signed else ''}.{digits}f}"


def ends(interval: dict[str, float] | None, digits: int, signed: bool = False) -> str:
    """Return an interval as `low to high`, NONE for None."""
    if interval is None:
        return NONE
    return " to ".join(number(interval[end], digits, signed) for end in ("low", "high"))
