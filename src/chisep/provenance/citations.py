"""BibTeX entries of the works that a text cites."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path


def references(text: str) -> str:
    """BibTeX of the works that a text cites.

    Parameters
    ----------
    text
        With citations as `[@key]`.

    Raises
    ------
    KeyError
        If it cites a work that is not in the database.
    """
    known = works()
    return "\n\n".join(known[key] for key in cited(text)) + "\n"


def cited(text: str) -> list[str]:
    """Keys of the works that a text cites, sorted."""
    return sorted(set(re.findall(r"(?<!\\)@([a-z]+\d{4}[a-z0-9]*)", text)))


@cache
def works() -> dict[str, str]:
    """Entries of the packaged database of works by their key."""
    database = (Path(__file__).parent / "references.bib").read_text(encoding="utf-8")
    entries = re.findall(r"^@\w+\{(\w+),.*?^\}", database, flags=re.MULTILINE | re.DOTALL)
    texts = re.findall(r"^@\w+\{.*?^\}", database, flags=re.MULTILINE | re.DOTALL)
    return dict(zip(entries, texts, strict=True))
