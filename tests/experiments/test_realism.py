from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from chisep import cli
from chisep.errors import InputError
from chisep.experiments import EXPERIMENTS
from chisep.experiments.realism import command as module
from chisep.experiments.realism.command import RealismConfig, realism
from chisep.experiments.realism.measures import BAND_EDGES_MM, region_means, spectrum, statistics
from chisep.experiments.realism.results import summarised, tables
from chisep.experiments.realism.targets import REGION_TARGETS, TARGETS
from chisep.io import nifti
from chisep.report import figures
from chisep.simulation.anatomy import packaged_labels
from chisep.simulation.tissue_properties import REGIONS


def test_statistics_of_known_values():
    found = statistics(np.arange(1001, dtype=np.float32)[::-1].copy())
    assert found == {
        "p1": 10,
        "p5": 50,
        "p50": 500,
        "p95": 950,
        "p99": 990,
        "mean": 500,
        "sd": pytest.approx(math.sqrt((1001**2 - 1) / 12), rel=1e-4),
    }


@pytest.mark.parametrize(("wavelength_mm", "band"), [(5.6, 1), (11.0, 2), (22.0, 3), (42.667, 4)])
@pytest.mark.parametrize("axis", [0, 2])
def test_a_sine_lands_in_its_band_with_its_power(wavelength_mm, band, axis):
    voxel_mm, shape = (2.0, 1.6, 2.0), (64, 80, 64)
    at = np.arange(shape[axis]) * voxel_mm[axis]
    wave = np.sin(2 * np.pi * at / wavelength_mm).reshape([-1 if a == axis else 1 for a in range(3)])
    volume = np.broadcast_to(10 * wave + 50, shape).astype(np.float32)
    bands = spectrum(volume, np.ones(shape, dtype=bool), voxel_mm)
    assert bands[0]["density"] is None, "2 mm waves need 1 mm voxels"
    rms = np.array([found["rms"] or 0.0 for found in bands])
    assert int(rms.argmax()) == band
    assert rms[band] == pytest.approx(10 / math.sqrt(2), rel=0.08)


def test_white_noise_is_flat_whatever_the_voxel_and_the_mask():
    rng = np.random.default_rng(0)
    for edge in (1.0, 2.0):
        shape = (72, 96, 80)
        noise = rng.standard_normal(shape).astype(np.float32) * 3
        mask = np.zeros(shape, dtype=bool)
        mask[4:-4, 4:-4, 10:-4] = True
        mask[20:50, 30:60, 20:40] = False
        bands = spectrum(noise, mask, (edge,) * 3)
        known = [found["density"] for found in bands if found["density"] is not None]
        # Fewer independent waves in the bands of the longest ones.
        for density, tolerance in zip(known[:4], (0.02, 0.03, 0.08, 0.3), strict=True):
            assert density == pytest.approx(9 * edge**3, rel=tolerance)


def test_squares_of_bands_add_up_to_the_variance():
    rng = np.random.default_rng(1)
    at = np.arange(64, dtype=np.float32)
    volume = sum(np.sin(2 * np.pi * at / length) * rng.uniform(2, 5) for length in (8.7, 19.0, 50.0))
    volume = np.broadcast_to(volume, (64, 64, 64)).astype(np.float32)
    bands = spectrum(volume, np.ones(volume.shape, dtype=bool), (1.0, 1.0, 1.0))
    assert sum(found["rms"] ** 2 for found in bands) == pytest.approx(volume.var(), rel=0.03)


def test_region_means_of_a_toy_label_map():
    labels = np.zeros((12, 6, 6), dtype=np.int16)
    labels[2:4], labels[4:6], labels[6:8] = 12, 51, 20007
    labels[8:10] = 10
    mask = labels > 0
    mask[:, 0] = False
    pos = np.where(labels == 12, 80, np.where(labels == 51, 70, np.where(labels == 10, 10, 50)))
    pos = np.where(mask, pos, 1e6).astype(np.float32)
    neg = (pos / 10).astype(np.float32)
    found = region_means(pos, neg, labels, mask)
    assert set(found) == {"putamen", "pulvinar", "whole thalamus"}
    assert found["putamen"] == {"chi_pos": 75, "chi_neg": 7.5, "voxels": 2 * 2 * 5 * 6}
    assert found["whole thalamus"]["chi_pos"] == 30


def test_every_region_is_of_labels_that_mean_something():
    known = {label for region in REGIONS for label in region.labels}
    assert all(set(region.labels) <= known for region in REGION_TARGETS)
    assert len({region.name for region in REGION_TARGETS}) == len(REGION_TARGETS)
    assert all(target.low < target.published < target.high for target in TARGETS)


def toy_head(chi_p99: float, putamen: float) -> dict:
    """What was measured of a head in which all else is as published."""
    values: dict = {}
    for target in TARGETS:
        values.setdefault(target.map, {})[target.statistic] = target.published
    values["chi"]["p99"] = chi_p99
    regions = {r.name: {"chi_pos": r.chi_pos_ppb, "chi_neg": r.chi_neg_ppb} for r in REGION_TARGETS}
    regions["putamen"]["chi_pos"] = putamen
    band = {"density": 100.0, "rms": 2.0}
    bands = [band | {"from_mm": a, "to_mm": b} for a, b in pairwise(BAND_EDGES_MM)]
    bands[0] |= {"density": None, "rms": None}
    return {"statistics": values, "regions": regions, "spectrum": {"chi": bands}}


def test_the_summary_says_what_is_in_and_what_is_out():
    summary = summarised([toy_head(107.0, 77.0), toy_head(190.0, 137.0)])
    out = [(row["map"], row["statistic"]) for row in summary["targets"] if not row["agrees"]]
    assert out == [("chi", "p99")]
    (row,) = (row for row in summary["targets"] if not row["agrees"])
    assert row["heads_that_agree"] == 1
    assert row["mean"] == 148.5
    out = [(row["region"], row["map"]) for row in summary["regions"] if not row["agrees"]]
    assert out == [("putamen", "chi_pos")]
    assert [row.get("log10_density") for row in summary["spectrum"]] == [None, 2, 2, 2, 2, 2]
    page = tables(summary, 2)
    assert page.count("**no**") == 2
    assert "| putamen | χ_pos | 107.0 ± 42.4 | 77 | +39 % | **no** |" in page
    assert "| 2–4 | voxels too large | – |" in page


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> RealismConfig:
    """Two heads from every fourth voxel of the packaged one, measured at 4 mm."""
    folder = tmp_path_factory.mktemp("realism")
    packaged = packaged_labels()
    coarse = np.ascontiguousarray(packaged.labels[::4, ::4, ::4])
    file = nifti.save(
        folder / "coarse_dseg.nii.gz", coarse, packaged.affine @ np.diag([4.0, 4.0, 4.0, 1.0]), dtype=np.int16
    )
    config = RealismConfig(out=folder / "out", labels=(file,), voxel_mm=4.0, heads=2)
    realism(config)
    return config


def test_all_is_written_and_agrees_with_itself(config):
    found = json.loads((config.out / "realism.json").read_text())
    assert [head["name"] for head in found["Heads"]] == ["head-01", "head-02"]
    first, second = found["Heads"]
    assert first["recipe"]["Warp"]["warp_mm"] == 0
    assert second["recipe"]["Warp"]["warp_mm"] == config.warp_mm
    assert first["statistics"] != second["statistics"]
    for head in (first, second):
        assert {"pallidum", "pulvinar", "whole white matter", "cerebral cortex"} <= set(head["regions"])
        assert 1000 < head["brain_ml"] < 2300
        chi, pos, neg = (head["statistics"][name] for name in ("chi", "chi_pos", "chi_neg"))
        assert chi["mean"] == pytest.approx(pos["mean"] - neg["mean"], abs=0.01)
        rates = [head["statistics"][name]["mean"] for name in ("r2star", "r2", "r2prime")]
        assert rates[0] == pytest.approx(rates[1] + rates[2], rel=1e-3)
        # R2' = 114 (χ_pos + χ_neg) at 3 T.
        assert rates[2] == pytest.approx(0.114 * (pos["mean"] + neg["mean"]), rel=1e-3)
        assert head["statistics"]["field"]["sd"] < chi["sd"]
        chi_bands = [band["rms"] for band in head["spectrum"]["chi"] if band["rms"] is not None]
        assert len(chi_bands) == 4, "from 8 mm on"
        assert sum(r**2 for r in chi_bands) < chi["sd"] ** 2
    assert summarised(found["Heads"]) == found["Summary"]
    assert (config.out / "realism.md").read_text() == tables(found["Summary"], 2)
    for name in ("histograms", "spectra", "maps-sources", "maps-rates"):
        assert (config.out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (config.out / f"{name}.png").stat().st_size < 300_000


def test_measured_heads_are_kept_and_others_are_made_again(config):
    files = [config.out / "heads" / f"head-0{number}.json" for number in (1, 2)]
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in files]
    calls = []
    realism(config, lambda *said: calls.append(said))
    assert calls == [("heads", 2, 2)]
    assert [path.stat().st_mtime_ns for path in files] == [time for time, _ in before]
    files[1].unlink()
    realism(config)
    assert files[0].stat().st_mtime_ns == before[0][0]
    assert files[1].read_bytes() == before[1][1], "a head does not depend on which were there"
    assert module._PhantomWork(config, 1).is_done()
    for other in (
        replace(config, seed=1),
        replace(config, warp_mm=2.0),
        replace(config, tissue=replace(config.tissue, age_years=70.0)),
    ):
        assert not module._PhantomWork(other, 1).is_done()


def test_heads_of_label_maps_apart_are_those_made_here(config, tmp_path):
    """Crops are too small for structures, which is warned of from the other process, too."""
    labels = np.zeros((14, 14, 14), dtype=np.int16)
    labels[3:11, 3:11, 3:11], labels[5:9, 5:9, 5:9], labels[6:8, 6:8, 6:8] = 3, 2, 12
    files = []
    for number in (1, 2):
        files.append(tmp_path / f"toy-{number}_dseg.nii.gz")
        nib.save(nib.Nifti1Image(labels, np.diag([6.0, 6.0, 6.0, 1.0])), files[-1])
    results = []
    for jobs in (1, 2):
        toys = RealismConfig(out=tmp_path / str(jobs), labels=tuple(files), voxel_mm=6.0, jobs=jobs)
        with pytest.warns(UserWarning, match="too few deep nuclei"):
            realism(toys)
        results.append([path.read_bytes() for path in sorted((toys.out / "heads").iterdir())])
    assert results[0] == results[1]
    head = json.loads(results[0][0])
    assert head["recipe"]["Head"] == "toy-1_dseg.nii.gz"
    assert len(head["recipe"]["HeadSha256"]) == 64
    assert {"putamen", "cerebral cortex", "whole white matter"} == set(head["regions"])


def test_numbers_of_heads():
    assert RealismConfig(out=Path("x")).number_of_heads == 4
    assert RealismConfig(out=Path("x"), labels=(Path("a"), Path("b"))).number_of_heads == 2
    assert RealismConfig(out=Path("x"), labels=(Path("a"), Path("b")), heads=5).number_of_heads == 5


@pytest.mark.parametrize(
    "wrong", [{"heads": 0}, {"jobs": 0}, {"seed": -1}, {"voxel_mm": 0.1}, {"warp_mm": 9.0}]
)
def test_options_out_of_range_are_refused(wrong, tmp_path):
    with pytest.raises(InputError, match=next(iter(wrong))):
        RealismConfig(out=tmp_path, **wrong)


def test_the_command_makes_the_results(config, capsys):
    call = ["reproduce", "realism", str(config.out), "--labels", str(config.labels[0])]
    assert cli.main([*call, "--voxel-mm", "4", "--heads", "2"]) == 0
    printed = capsys.readouterr().out.split()
    assert printed[:2] == [str(config.out / name) for name in ("realism.md", "realism.json")]


def test_the_command_names_its_experiments(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["reproduce"])
    assert ended.value.code == 2
    listed = capsys.readouterr().out
    assert all(name in listed for name in EXPERIMENTS)
    assert cli.main(["reproduce", "realsim", "out"]) == 2
    assert f"there are: {', '.join(EXPERIMENTS)}" in capsys.readouterr().err
    for name, experiment in EXPERIMENTS.items():
        with pytest.raises(SystemExit) as ended:
            cli.main(["reproduce", name, "--help"])
        assert ended.value.code == 0
        assert experiment.summary in " ".join(capsys.readouterr().out.split())


def test_a_spike_of_empty_voxels_is_cut_off_and_marks_are_drawn():
    percent = np.full((2, 60), 5.0)
    percent[:, 0] = 60.0
    figure = figures.distributions(
        [
            figures.Distribution("with a spike", "ppb", (0.0, 100.0), percent, [30.0]),
            figures.Distribution("without", "ppb", (0.0, 100.0), percent[:, 1:]),
        ]
    )
    spiked, even = figure.axes
    assert 5 < spiked.get_ylim()[1] < 10
    assert 5 < even.get_ylim()[1] < 10
    assert [line.get_xdata()[0] for line in spiked.lines] == [30.0]
    assert not even.lines


def test_spectra_lie_in_the_middle_of_their_octaves():
    rows = np.array([[np.nan, 10.0, 100.0], [np.nan, 30.0, 300.0]])
    (axes,) = figures.band_spectra({"χ": rows}, (2.0, 4.0, 8.0, 16.0), unit="ppb² mm³").axes
    mean = axes.lines[-1]
    np.testing.assert_allclose(mean.get_xdata(), np.sqrt([8.0, 32.0, 128.0]))
    np.testing.assert_allclose(mean.get_ydata(), [np.nan, 20.0, 200.0])
    assert len(axes.lines) == 3
