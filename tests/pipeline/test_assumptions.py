"""Assumptions: those that options or sidecars settle are none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from chisep.pipeline.assumptions import assumptions
from chisep.pipeline.config import RunConfig
from chisep.pipeline.run import discover
from chisep.preprocessing.field_map import FieldConfig


@pytest.fixture(scope="module")
def session(raw_gradient_echo):
    (found,) = discover(RunConfig(raw_gradient_echo, Path("out")))
    return found.session


def texts(session, field=None, **options) -> str:
    known = {"b0_from_affine": (0.0, 0.6, 0.8), "dr_stated": False} | options
    return "\n".join(one.text for one in assumptions(session, 3.0, field or FieldConfig(), **known))


def test_all_of_a_scan_that_states_nothing(session):
    said = texts(replace(session, megre=replace(session.megre, phase_units="")))
    for words in (
        "scale of the phase",
        "phase that grows",
        "unipolar",
        "(0.000, 0.600, 0.800)",
        "pseudo-R2",
        "D_r of 114",
    ):
        assert words in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"field": FieldConfig(phase_sign=-1)}, "phase that grows"),
        ({"field": FieldConfig(bipolar=False)}, "unipolar"),
        ({"b0_from_affine": None}, "B0 along"),
        ({"dr_stated": True}, "D_r"),
    ],
)
def test_what_is_stated_is_not_assumed(session, options, words):
    assert words in texts(session)
    assert words not in texts(session, **options)


def test_every_assumption_belongs_to_a_stage(session):
    known = {"field", "background", "relaxometry", "qsm", "separation"}
    found = assumptions(session, 3.0, FieldConfig(), b0_from_affine=(0.0, 0.0, 1.0), dr_stated=False)
    assert all(one.stages and known.issuperset(one.stages) for one in found)
    (b0,) = [one for one in found if one.text.startswith("B0")]
    assert b0.stages == ("background", "qsm", "separation")


def test_one_echo_has_neither_read_out_nor_sources(session):
    one = replace(session, megre=replace(session.megre, te_s=session.megre.te_s[:1]))
    said = texts(one)
    assert "phase that grows" in said
    for words in ("unipolar", "pseudo-R2", "D_r"):
        assert words not in said
