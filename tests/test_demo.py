"""The demonstration, small: a short table of methods on a processed scan, and with --all every method."""

from __future__ import annotations

import warnings

import pytest

from chisep import cli
from chisep.demo import SHORT, DemoConfig, demo
from chisep.errors import ChisepWarning
from chisep.io import nifti
from chisep.methods import DEFAULTS, METHODS
from chisep.metrics import nrmse_percent


def small(folder, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ChisepWarning)
        return demo(DemoConfig(folder, voxel_mm=6.0, **options), paint_mm=4.0)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    return small(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def all_shown(tmp_path_factory):
    return small(tmp_path_factory.mktemp("demo-all"), all=True)


def test_the_table_is_short(shown):
    assert [row[:3] for row in shown.rows] == [
        (name, symbol, "pipeline") for name in SHORT for symbol in ("χ_pos", "χ_neg")
    ]
    assert SHORT[0] == DEFAULTS["sources"]


def test_the_default_is_what_the_session_computed(shown):
    """Its scores are those of the maps that the report shows."""
    folder = shown.report.parent / "sub-01" / "anat"
    truth = shown.report.parents[1] / "bids/derivatives/truth/sub-01/anat"
    mask = nifti.load_mask(folder / "sub-01_desc-eroded_mask.nii.gz").data
    name = "sub-01_desc-paramagnetic_Chimap.nii.gz"
    nrmse = nrmse_percent(nifti.load(folder / name).data, nifti.load(truth / name).data, mask)
    assert shown.rows[0][3] == f"{nrmse:.1f}"


@pytest.mark.slow
def test_every_method_that_has_its_weights_is_compared(all_shown):
    compared = {(row[0], row[1], row[2]) for row in all_shown.rows}
    expected = {
        (name, symbol, inputs)
        for name, method in METHODS.items()
        if not method.missing_weights
        for symbol in (("χ",) if method.target == "chi" else ("χ_pos", "χ_neg"))
        for inputs in ("noisy maps", "pipeline")
    }
    assert compared == expected
    assert {name for name, *_ in compared} >= {
        name for name, method in METHODS.items() if not method.is_network
    }


@pytest.mark.slow
def test_networks_that_were_trained_on_other_voxels_are_named_on_the_page(all_shown):
    page = all_shown.comparison.read_text()
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


@pytest.mark.slow
def test_preprocessing_costs_accuracy(all_shown):
    nrmse = {row[:3]: float(row[3]) for row in all_shown.rows}
    for symbol in ("χ_pos", "χ_neg"):
        assert nrmse["iterative", symbol, "noisy maps"] < nrmse["iterative", symbol, "pipeline"]


def test_command_refuses_an_unusable_place(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli.main(["demo", str(tmp_path / "file")]) == 1
    assert "cannot be written" in capsys.readouterr().err
