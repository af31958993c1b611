"""Record of a training: it is continued with the same settings, and refused with others or if damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from chisep.errors import InputError
from chisep.training.recipes import recipes
from chisep.training.record import check_record
from tests.training.tiny import config, tiny


def changed(out: Path, **settings) -> None:
    """Change settings of a record, by names joined with dots; None removes one."""
    path = out / "training.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    for name, value in settings.items():
        *groups, last = name.split("__")
        part = record
        for group in groups:
            part = part[group]
        if value is None:
            del part[last]
        else:
            part[last] = value
    path.write_text(json.dumps(record), encoding="utf-8")


@pytest.fixture
def written(tmp_path):
    """A training whose record is written."""
    training = config(tmp_path, tmp_path / "dataset", tiny("unrolled"))
    check_record(training)
    return training


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_continued(name, tmp_path):
    training = config(tmp_path, tmp_path / "dataset", recipes()[name])
    check_record(training)
    first = (tmp_path / "training.json").read_bytes()
    check_record(training)
    assert (tmp_path / "training.json").read_bytes() == first


def test_texts_of_a_recipe_may_differ(written):
    check_record(replace(written, recipe=replace(written.recipe, summary="other", reference="other")))


def test_a_setting_that_later_versions_added_is_none(written):
    assert written.recipe.optimiser.average_steps is None
    assert "average_steps" not in (written.out / "training.json").read_text(encoding="utf-8")
    averaged = replace(written.recipe.optimiser, average_steps=3)
    with pytest.raises(InputError, match="a training with other optimiser"):
        check_record(replace(written, recipe=replace(written.recipe, optimiser=averaged)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 3}, "a training with other epochs"),
        ({"data__train": ["07"]}, "a training with other data"),
        ({"loss__label": None}, "a training with other loss"),
        ({"start": {"sha256": "0" * 64}}, "a training with other start"),
        ({"loss__removed": 1.0}, r"unknown settings: loss\.removed"),
        ({"removed": 1.0}, "removed"),
        ({"epochs": "two"}, "epochs"),
        ({"epochs": None}, "epochs"),
        ({"crops__size": 1}, "8 voxels or more"),
        ({"data": []}, "data"),
    ],
)
def test_others_are_refused(written, settings, message):
    changed(written.out, **settings)
    before = (written.out / "training.json").read_bytes()
    with pytest.raises(InputError, match=message) as raised:
        check_record(written)
    assert str(written.out) in str(raised.value)
    assert (written.out / "training.json").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null"])
def test_damaged_records_are_refused(written, content):
    (written.out / "training.json").write_bytes(content)
    with pytest.raises(InputError, match="no record of a training of this version"):
        check_record(written)
