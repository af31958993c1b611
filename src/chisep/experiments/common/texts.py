"""Numbers and tables of experiments as text."""

from __future__ import annotations

from collections.abc import Sequence


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table as Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def plus_minus(mean: float | None, sd: float | None, digits: int) -> str:
    """Write a mean and its SD; a dash if unknown."""
    if mean is None:
        return "–"
    return f"{mean:.{digits}f}" + ("" if sd is None else f" ± {sd:.{digits}f}")


def number(value: float | None) -> float:
    """Convert an unknown value to NaN, which is not drawn."""
    return float("nan") if value is None else value
