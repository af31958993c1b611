"""The demonstration, small: every method is scored that can be, on true inputs and on processed ones."""

from __future__ import annotations

import warnings

import pytest

from chisep import cli
from chisep.demo import DemoConfig, demo
from chisep.errors import ChisepWarning
from chisep.methods import METHODS


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ChisepWarning)
        return demo(DemoConfig(tmp_path_factory.mktemp("demo"), voxel_mm=6.0), paint_mm=4.0)


def test_every_method_that_has_its_weights_is_compared(shown):
    compared = {(row[0], row[1], row[2]) for row in shown.rows}
    expected = {
        (name, symbol, inputs)
        for name, method in METHODS.items()
        if not method.missing_weights
        for symbol in (("χ",) if method.target == "chi" else ("χ_pos", "χ_neg"))
        for inputs in ("true", "pipeline")
    }
    assert compared == expected
    assert {name for name, *_ in compared} >= {
        name for name, method in METHODS.items() if not method.is_network
    }


def test_networks_that_were_trained_on_other_voxels_are_named_on_the_page(shown):
    page = shown.comparison.read_text()
    for name, method in METHODS.items():
        said = f"{name}: network "
        if method.is_network:
            assert f"{said}{method.weights[0]} was not trained on such scans: " in page
        else:
            assert said not in page


def test_pages(shown):
    assert shown.report.is_file()
    page = shown.comparison.read_text()
    for row in shown.rows:
        assert row[0] in page


def test_iterative_beats_closed_form_on_true_inputs(shown):
    nrmse = {row[:3]: float(row[3]) for row in shown.rows}
    for symbol in ("χ_pos", "χ_neg"):
        assert nrmse["iterative", symbol, "true"] < nrmse["closed-form", symbol, "true"]


def test_command_refuses_an_unusable_place(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli.main(["demo", str(tmp_path / "file")]) == 1
    assert "cannot be written" in capsys.readouterr().err
