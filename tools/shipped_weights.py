"""Write what follows from the weights in `networks/shipped`: range, checksums, model cards.

The range of the training is written to headers that lack it, as those of weights from before it was known;
their tensors stay as they are.

python tools/shipped_weights.py
python tools/shipped_weights.py --check    # writes nothing; ends with 1 if something is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from chisep.api.weights import weight_cards
from chisep.experiments.thesis.data import ThesisConfig
from chisep.io.files import checksum
from chisep.io.weights import load_weights, save_weights
from chisep.networks.model_card import model_card
from chisep.networks.weights import SHA256SUMS, WeightsConfig, read_header, shipped
from chisep.training.data import TrainingScan
from chisep.training.protocols import ProtocolConfig
from chisep.training.trained_range import range_of_protocols, range_of_scans
from chisep.types import Grid

CARDS = Path(__file__).parents[1] / "docs" / "weights"


def add_range(path: Path) -> bool:
    """Add the range of the training to a header that lacks it; return whether it did."""
    tensors, header = load_weights(path)
    if "range" in header:
        return False
    network = read_header(header).network
    if header["recipe"].get("protocol") is not None:
        limits = range_of_protocols(msgspec.convert(header["recipe"]["protocol"], ProtocolConfig), network)
    else:  # the scans of docs/thesis.md, turned upright
        scanner = ThesisConfig(out=Path()).simulation()
        scan = TrainingScan("", Grid((1, 1, 1), (scanner.voxel_mm,) * 3), None, {}, scanner.b0_t)
        limits = range_of_scans([scan], network, scanner)
    before = tensor_bytes(path)
    save_weights(path, tensors, header | {"range": msgspec.to_builtins(limits)})
    if tensor_bytes(path) != before:
        raise ValueError(f"{path.name}: its tensors changed")
    return True


def tensor_bytes(path: Path) -> bytes:
    """Return the bytes after the header of weights."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


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

    if write:
        found += [path.name for path in shipped().values() if add_range(path)]
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
