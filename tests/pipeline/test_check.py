"""Check of a dataset: every session is checked on its own; missing data and assumptions are listed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chisep.errors import InputError
from chisep.io import bids, nifti
from chisep.io.discovery import Selection
from chisep.io.files import write_json
from chisep.pipeline.check import BidsCheckConfig, bids_check, check_dataset

TE_S = (0.005, 0.011, 0.017, 0.023)
TE_SE_S = (0.015, 0.03, 0.045, 0.06)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def write(root, subject, suffix, te_s, *, part=None, affine=AFFINE, shape=(4, 5, 6), **facts):
    for echo, te in enumerate(te_s, start=1):
        path = bids.raw_path(root, subject, suffix, echo=echo, part=part)
        nifti.save(path, np.ones(shape), affine)
        write_json(bids.sidecar_of(path), {"EchoTime": te, "MagneticFieldStrength": 3.0} | facts)


def person(root, subject, te_s=TE_S, *, mese=True, units="rad", **spin_echo):
    write(root, subject, "MEGRE", te_s, part="mag")
    write(root, subject, "MEGRE", te_s, part="phase", **({"Units": units} if units else {}))
    if mese:
        write(root, subject, "MESE", TE_SE_S, **spin_echo)


@pytest.fixture
def root(tmp_path):
    bids.write_dataset_description(tmp_path, "test")
    return tmp_path


def only(root, **options):
    (check,) = check_dataset(root, **options)
    return check


def says(texts, *words):
    return any(all(word in text for word in words) for text in texts)


def test_a_complete_session_lacks_nothing(root):
    person(root, "01")
    check = only(root)
    assert check.ok
    assert (check.missing, check.warnings, check.problems) == ((), (), ())
    assert says(check.will_run, "4 gradient echoes", "5, 11, 17, 23 ms")
    assert says(check.will_run, "registration")
    assert says(check.will_run, "4 spin echoes", "R2'")
    assert says(check.will_run, "unrolled")
    assert not says(check.will_run, "resampling")
    assert says(check.assumed, "D_r of 114")
    assert says(check.assumed, "(0.000, 0.000, 1.000)")
    assert says(check.assumed, "unipolar")


def test_without_spin_echo_and_units_assumptions_are_named(root):
    person(root, "01", mese=False, units=None)
    check = only(root)
    assert check.ok
    assert says(check.missing, "MESE")
    assert says(check.missing, "Units")
    assert says(check.assumed, "pseudo-R2", "12.7")
    assert says(check.assumed, "scale of the phase")
    assert says(check.warnings, "unrolled", "pseudo-R2")


def test_uneven_and_few_echoes(root):
    person(root, "01", te_s=(0.005, 0.011, 0.02))
    person(root, "02", te_s=(0.005, 0.011))
    uneven, few = check_dataset(root)
    assert says(uneven.will_run, "non-linear")
    assert says(uneven.warnings, "only 3 gradient echoes")
    assert few.ok
    assert says(few.will_run, "R2* from the ratio of two echoes")
    assert says(few.warnings, "only 2 gradient echoes")


def test_another_grid_is_resampled_and_its_cover_is_told(root):
    thick = np.diag([1.0, 1.0, 4.0, 1.0])
    thick[2, 3] = 1.0
    person(root, "01", affine=thick, shape=(4, 5, 3))
    person(root, "02", affine=thick, shape=(4, 5, 2))
    away = AFFINE.copy()
    away[0, 3] = 500
    person(root, "03", affine=away)
    whole, part, none = check_dataset(root)
    assert says(whole.will_run, "resampling")
    assert not whole.warnings
    assert part.ok
    assert says(part.warnings, "covers", "beyond it")
    assert not none.ok
    assert says(none.problems, "does not overlap", "sub-03")


def test_an_oblique_affine_gives_the_direction_of_b0(root):
    person(root, "01", mese=False)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[0.8, -0.6], [0.6, 0.8]]
    for part in ("mag", "phase"):
        write(root, "01", "MEGRE", TE_S, part=part, affine=turn @ AFFINE, Units="rad")
    assert says(only(root).assumed, "(0.000, 0.600, 0.800)")
    (given,) = bids_check(BidsCheckConfig(root, b0_dir=(0.0, 0.0, 1.0)))
    assert given.ok
    assert not says(given.assumed, "B0")


def test_one_broken_session_hides_no_other(root):
    for subject in ("01", "02", "03"):
        person(root, subject)
    bids.sidecar_of(bids.raw_path(root, "02", "MEGRE", echo=2, part="mag")).write_text("{")
    bids.raw_path(root, "03", "MESE", echo=1).write_bytes(b"no image")
    (root / "sub-04" / "anat").mkdir(parents=True)
    first, second, third, fourth = check_dataset(root)
    assert first.ok
    assert says(second.problems, "sub-02", "not JSON")
    assert says(third.problems, "sub-03_echo-1_MESE", "cannot be read")
    assert says(fourth.problems, "no multi-echo gradient-echo")
    assert [check.name for check in check_dataset(root, Selection(("sub-02", "03")))] == ["sub-02", "sub-03"]


def test_echoes_on_different_grids(root):
    person(root, "01")
    nifti.save(bids.raw_path(root, "01", "MEGRE", echo=3, part="phase"), np.ones((4, 5, 7)), AFFINE)
    check = only(root)
    assert not check.ok
    assert says(check.problems, "echo-3_part-phase", "shape (4, 5, 7)", "the grid of")


def test_a_method_that_takes_other_maps_or_does_not_exist(root):
    person(root, "01", mese=False)
    with pytest.raises(InputError, match="nonsense"):
        BidsCheckConfig(root, method="nonsense")
    with pytest.raises(InputError, match="nonsense"):
        check_dataset(root, method="nonsense")


def test_text_and_json_say_the_same(root):
    person(root, "01", mese=False)
    (check,) = bids_check(BidsCheckConfig(root))
    text = "\n".join(check.lines())
    assert text.startswith("sub-01: will run")
    facts = json.loads(json.dumps(check.as_dict()))
    assert facts["ok"] is True
    for key in ("will_run", "missing", "assumed", "warnings"):
        assert facts[key]
        assert all(fact in text for fact in facts[key])
