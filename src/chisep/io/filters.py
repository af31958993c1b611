"""Which images of a dataset are to be used: --bids-filter-file, in the format of fMRIPrep and pybids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chisep.errors import InputError
from chisep.io.bids import LONGEST_TE_S, entities, read_json

_LONG_NAMES = {
    **{"subject": "sub", "session": "ses", "acquisition": "acq", "ceagent": "ce", "reconstruction": "rec"},
    **{"direction": "dir", "inversion": "inv", "modality": "mod"},
}
"""Names of entities in pybids → as in file names."""
_SAME_NAMES = ("run", "part", "echo", "task", "sample", "flip", "mt", "chunk", "desc", "suffix")
_ENTITIES = {name: name for name in (*_LONG_NAMES.values(), *_SAME_NAMES)} | _LONG_NAMES
_OF_THE_QUERY = ("datatype", "extension")
_EXAMPLE = '{"MEGRE": {"reconstruction": "norm"}, "MESE": {"run": 1}}'


@dataclass(frozen=True)
class Filters:
    """Entities that the images of a suffix must have.

    Parameters
    ----------
    wanted
        Suffix → entity as in file names → a label, a number, a list of them, None (the entity is absent) or
        "*" (it is there, with any label).
    """

    wanted: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def keep(self, image: Path) -> bool:
        """Whether an image is one of those to be used."""
        names = entities(image.name)
        of_suffix = self.wanted.get(names["suffix"], {})
        return all(_matches(names.get(entity), value) for entity, value in of_suffix.items())

    @property
    def is_empty(self) -> bool:
        """Whether all images are used."""
        return not any(self.wanted.values())


def read_filters(path: Path | None) -> Filters:
    """Read a filter file; all images are used without one.

    Parameters
    ----------
    path
        JSON: {"MEGRE": {entity: label, …}, "MESE": {…}}, entities by their long names as in pybids
        (reconstruction) or as in file names (rec).

    Raises
    ------
    InputError
        If it cannot be read, or has another form.
    """
    if path is None:
        return Filters()
    content = read_json(path)
    wanted: dict[str, dict[str, Any]] = {}
    for suffix, of_suffix in content.items():
        if suffix.upper() not in LONGEST_TE_S:
            # Files that other apps share with this one have entries for their own images.
            continue
        if not isinstance(of_suffix, dict) or not all(map(_is_value, of_suffix.values())):
            raise _wrong(path, f"{suffix}: {str(of_suffix)[:80]}")
        of_images = {str(key): value for key, value in of_suffix.items() if key not in _OF_THE_QUERY}
        if unknown := sorted(set(of_images) - set(_ENTITIES)):
            raise _wrong(path, f"{suffix}: unknown entities: {', '.join(unknown)[:80]}")
        wanted[suffix.upper()] = {_ENTITIES[key]: value for key, value in of_images.items()}
    if content and not wanted:
        raise _wrong(path, f"entries for {', '.join(map(str, content))[:80]} only")
    return Filters(wanted)


def _is_value(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(not isinstance(one, list) and _is_value(one) for one in value)
    return value is None or (isinstance(value, str | int) and not isinstance(value, bool))


def _wrong(path: Path, found: str) -> InputError:
    return InputError(
        path,
        found=found,
        expected=f"JSON like {_EXAMPLE}; null where the entity must be absent, a list for several labels",
        fix="Correct the file.",
    )


def _matches(label: str | None, wanted: Any) -> bool:  # noqa: ANN401
    if isinstance(wanted, list):
        return any(_matches(label, one) for one in wanted)
    if wanted is None or label is None:
        return wanted is None and label is None
    if wanted == "*":
        return True
    if isinstance(wanted, int):  # run 1 is run-1 and run-01
        return label.isascii() and label.isdigit() and label.lstrip("0") == str(wanted).lstrip("0")
    return bool(label == wanted)
