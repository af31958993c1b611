"""Write what follows from the weights in `networks/shipped`: their checksums and their model cards.

python tools/shipped_weights.py
python tools/shipped_weights.py --check    # writes nothing; ends with 1 if something is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

from chisep.api.weights import weight_cards
from chisep.io.files import checksum
from chisep.networks.model_card import model_card
from chisep.networks.weights import SHA256SUMS, WeightsConfig, shipped

CARDS = Path(__file__).parents[1] / "docs" / "weights"


def checksum_list() -> str:
    """Return the list of checksums, as `sha256sum` writes it."""
    return "".join(f"{checksum(path)}  {path.name}\n" for path in shipped().values())


def outdated(*, write: bool) -> list[str]:
    """Return names of files that are out of date, after writing them if asked."""
    found = []

    def compare(path: Path, text: str) -> None:
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return
        found.append(path.name)
        if write:
            path.write_text(text, encoding="utf-8")

    compare(SHA256SUMS, checksum_list())
    if write or not found:  # weights are loaded only if their checksums are right
        for name, card in weight_cards(WeightsConfig()).items():
            compare(CARDS / f"{name}.md", model_card(card))
    return found


def main() -> int:
    """Update or check."""
    check = "--check" in sys.argv[1:]
    found = outdated(write=not check)
    print("\n".join(found) or "everything is up to date")
    return int(check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
