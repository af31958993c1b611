"""List the links of the documentation to other hosts, with the pages that have them. Nothing is opened."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def external_links() -> dict[str, list[str]]:
    """Pages by address."""
    pages = [
        *ROOT.glob("*.md"),
        *(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts),
    ]
    found: dict[str, list[str]] = {}
    for page in sorted(pages):
        for address in re.findall(r"https?://[^\s)>\"'`]+", page.read_text(encoding="utf-8")):
            found.setdefault(address.rstrip(".,"), []).append(str(page.relative_to(ROOT)))
    return dict(sorted(found.items()))


def main() -> int:
    """Print the list."""
    for address, pages in external_links().items():
        print(address, *sorted(set(pages)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
