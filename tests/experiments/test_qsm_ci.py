"""Worlds by the benchmark's definitions: R2' and χ of a world determine its sources; rows are kept by key."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chisep.errors import InputError
from chisep.experiments.qsm_ci import command as qsm_ci_command
from chisep.experiments.qsm_ci import page, rows, special, worlds
from chisep.experiments.qsm_ci.definitions import DEFINITIONS, GREY, WHITE, definition, tissues_of, tracts_of
from chisep.experiments.reproducibility import command, scans
from chisep.experiments.reproducibility import page as reproducibility_page
from chisep.io.files import write_json
from chisep.physics.signal import r2prime_of_sources
from chisep.simulation import labelmap
from chisep.simulation.tissue import Tissue
from chisep.types import Grid, Relaxivity

SUBMISSIONS = Path(__file__).parents[2] / "qsm-ci"
SHAPE, EDGE_MM = (22, 24, 20), 4.0
needs_forward = pytest.mark.skipif(
    importlib.util.find_spec("qsm_forward") is None, reason="qsm-forward, an extra, is not installed"
)


def tissue(one) -> Tissue:
    """A ball of white matter with a core of putamen and a shell of cortex."""
    axes = np.meshgrid(*((np.arange(n) - (n - 1) / 2) * EDGE_MM for n in SHAPE), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    labels = np.where(radius < 32, labelmap.CEREBRAL_CORTEX[0], 0)
    labels[radius < 26] = labelmap.CEREBRAL_WHITE[0]
    labels[(radius < 26) & (axes[0] > 8)] = labelmap.CALLOSUM_BODY
    labels[radius < 8] = labelmap.PUTAMEN[0]
    mask = torch.from_numpy(labels > 0)
    rng = np.random.default_rng(0)
    pos, neg = (
        torch.from_numpy((low + 0.01 * rng.random(SHAPE)).astype(np.float32)) * mask for low in (0.02, 0.03)
    )
    angle = (
        torch.from_numpy(np.arctan2(np.hypot(axes[0], axes[1]), np.abs(axes[2])).astype(np.float32)) * mask
    )
    d_r = Relaxivity(one.dr_pos_hz_per_ppm, one.mean_dr_neg_hz_per_ppm)
    white = torch.from_numpy(np.isin(labels, labelmap.WHITE_MATTER))
    effect = torch.where(white, 1.5 * angle.sin() ** 2, 1.0) if one.sin2 else torch.ones(SHAPE)
    ones = torch.ones(SHAPE)
    return Tissue(
        grid=Grid(SHAPE, (EDGE_MM,) * 3, affine=np.diag([EDGE_MM] * 3 + [1.0])),
        b0_t=one.b0_t,
        relaxivity=d_r,
        chi_pos_ppm=pos,
        chi_neg_ppm=neg,
        r2_hz=15 * ones,
        r2prime_hz=r2prime_of_sources(pos, neg * effect, d_r) * mask,
        t1_s=ones,
        m0=mask.float(),
        mask=mask,
        labels=torch.from_numpy(labels.astype(np.int16)),
        chi_outside_ppm=torch.zeros(SHAPE),
        fibre_angle_rad=angle,
    )


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Write a world of the small ball."""

    def write(name, maker):
        monkeypatch.setattr(worlds, "head_tissue", lambda one, _head: tissue(one))
        head = worlds.HeadOptions(None, EDGE_MM, 1)
        return worlds.written_world(tmp_path / maker / name, definition(name), maker, head)

    return write


class TestDefinitions:
    def test_d_r_is_as_published(self):
        mc, iso, aniso = (DEFINITIONS[name] for name in ("mc", "3t-iso", "7t-aniso"))
        assert mc.dr_pos_hz_per_ppm == 320
        assert mc.dr_neg_hz_per_ppm == pytest.approx(397, abs=0.1)
        assert iso.dr_pos_hz_per_ppm == pytest.approx(323.5, abs=0.1)
        assert iso.mean_dr_neg_hz_per_ppm == 700.8
        assert aniso.dr_pos_hz_per_ppm == pytest.approx(755, abs=0.2)
        assert aniso.mean_dr_neg_hz_per_ppm == pytest.approx(2 / 3 * 936.4, abs=0.1)
        assert math.isinf(iso.snr)

    def test_labels(self):
        labels = np.array([[[11, 20009, 255, 2, 3, 4, 999, 0]]], np.int16)
        seg = tissues_of(labels, labels > 0)
        assert seg.ravel().tolist() == [1, 2, WHITE, WHITE, GREY, 10, 10, 0]
        assert tracts_of(labels, seg).ravel().tolist() == [0, 0, 3, 11, 0, 0, 0, 0]

    def test_unknown_world(self):
        with pytest.raises(InputError, match="3t-iso"):
            definition("3t-isotropic")


class TestWorlds:
    @pytest.mark.parametrize("maker", ["chisep", pytest.param("qsm-forward", marks=needs_forward)])
    @pytest.mark.parametrize("name", ["mc", "3t-iso"])
    def test_the_null_that_reads_d_r_is_exact(self, made, tmp_path, maker, name):
        world = made(name, maker)
        cell = rows.Cell(world, "chi-separation", special.LABEL_NULL)
        scores = rows.row(cell, SUBMISSIONS, tmp_path / "cells")["Scores"]
        for source in ("chi-para", "chi-dia"):
            assert scores[source]["xsim"] > 0.999
            assert scores[source]["nrmse"] < 1

    def test_scan_holds_r2prime_and_field(self, made):
        world = made("3t-aniso", "chisep")
        inputs = rows.Inputs(world / "inputs")
        magnitude, mask = inputs.echoes("magnitude"), inputs.mask
        te_s = inputs.te_s
        decay = (magnitude[0] / magnitude[1]).log()[mask] / (te_s[1] - te_s[0])
        r2prime = inputs.volume("r2prime")[mask]
        assert float((decay - 15 - r2prime).median().abs()) < 1.0
        assert torch.corrcoef(torch.stack([decay, r2prime]))[0, 1] > 0.9

    def test_a_complete_world_is_kept_and_another_is_made_again(self, made):
        world = made("mc", "chisep")
        before = (world / "inputs" / "phase.nii.gz").stat().st_mtime_ns
        assert (made("mc", "chisep") / "inputs" / "phase.nii.gz").stat().st_mtime_ns == before
        record = json.loads((world / worlds.RECORD).read_text())
        write_json(world / worlds.RECORD, record | {"Maker": "other"})
        assert (made("mc", "chisep") / "inputs" / "phase.nii.gz").stat().st_mtime_ns > before


class TestRows:
    def test_a_row_is_kept_until_its_weights_change(self, made, tmp_path, monkeypatch):
        cell = rows.Cell(made("mc", "chisep"), "chi-separation", special.NULL)
        first = rows.row(cell, SUBMISSIONS, tmp_path / "cells")
        monkeypatch.setattr(rows, "_scored", lambda *_: {"Scores": "again"})
        assert rows.row(cell, SUBMISSIONS, tmp_path / "cells") == first
        monkeypatch.setattr(rows, "_weights", lambda _: ["other weights"])
        assert rows.row(cell, SUBMISSIONS, tmp_path / "cells")["Scores"] == "again"

    @pytest.mark.slow  # starts a process that loads torch
    def test_the_default_is_run_by_the_benchmark(self, made, tmp_path):
        cell = rows.Cell(made("7t-field", "chisep"), "bfr", rows.DEFAULT)
        scores = rows.row(cell, SUBMISSIONS, tmp_path / "cells")["Scores"]
        assert scores["localfield"]["coverage"] == 1

    def test_every_row_has_its_weights(self, made):
        world = made("mc", "chisep")
        for method in (rows.DEFAULT, special.NULL, special.LABEL_NULL, "iterative", "chi-sepnet-r2p"):
            cell = rows.Cell(world, "chi-separation", method)
            assert bool(rows._weights(cell)) == (method not in (special.NULL, special.LABEL_NULL))

    def test_page_has_a_table_for_each_stage(self):
        score = {"xsim": 0.5, "nrmse": 50.0, "mspe": 1.5, "coverage": 1.0}
        found = {
            "Head": "head-11_dseg.nii.gz",
            "VoxelMm": 2.0,
            "Rows": [
                {
                    **{"World": "mc", "Maker": "chisep", "Stage": "chi-separation", "Method": "default"},
                    **{
                        "Code": "0123456789abcdef",
                        "Noisy": False,
                        "Scores": {"chi-para": score, "chi-dia": score},
                    },
                    "Runner": ["valid"],
                    "D_r": {"Source": "scan", "Found": [300.0, 250.0], "True": [320.0, 265.0]},
                },
                {
                    **{"World": "7t-field", "Maker": "chisep", "Stage": "dipole", "Method": "tv"},
                    **{
                        "Code": "0123456789abcdef",
                        "Noisy": True,
                        "Scores": {"chimap": score | {"hfen": None}},
                    },
                },
            ],
        }
        text = page.page(found)
        assert "## chi-separation" in text
        assert "| mc | chisep | default | 0.500 | 50.0 | 1.50 | 1.000 | 0.500 | 50.0 | 1.50 | 1.000 |" in text
        assert "300 of 320 (-6 %)" in text
        assert "0123456789ab (2 rows)" in text
        assert "| xSIM ≥ 0.85/0.78 | head-11 | mc | chisep | 0.500/0.500 | no |" in text
        assert "| MSPE ≤ 2/2 % | head-11 | mc | chisep | 1.50/1.50 | yes |" in text
        assert "| D_r within 15 % | head-11 | mc | chisep | -6/-6 % | yes |" in text
        assert "| 7t-field | chisep | tv (noisy field) | 0.500 | 50.0 | – | 1.50 | 1.000 |" in text

    def test_page_has_mean_and_range_over_heads(self):
        def one(head, xsim):
            score = {"xsim": xsim, "nrmse": 100 * xsim, "coverage": 1.0}
            key = {
                "World": "7t-field",
                "Maker": "chisep",
                "Stage": "end-to-end",
                "Method": "default",
                "Noisy": False,
            }
            return {**key, "Head": head, "Code": "0123", "Scores": {"chimap": score}}

        found = {"Head": "head-11", "VoxelMm": 2.0, "Rows": [one("head-11", 0.3)]}
        found["FurtherHeads"] = [one("head-12", 0.5), one("head-13", 0.7)]
        text = page.page(found)
        assert "on head-12, head-13" in text
        assert "0123 (3 rows)" in text
        assert "| end-to-end | chimap | 3 | 0.500 (0.300 to 0.700) | 50.0 (30.0 to 70.0) | – | – |" in text
        assert "| end-to-end: xSIM above 0.40 | head-11 | 7t-field | chisep | 0.300 | no |" in text
        assert "| end-to-end: xSIM above 0.40 | head-12 | 7t-field | chisep | 0.500 | yes |" in text

    def test_further_heads_have_the_default_alone(self, tmp_path, monkeypatch):
        monkeypatch.setattr(worlds, "head_tissue", lambda one, _head: tissue(one))
        monkeypatch.setattr(rows, "_scored", lambda *_: {"Scores": {"r2prime": {"xsim": 0.5}}})
        first, second = (tmp_path / f"head-{number}_dseg.nii.gz" for number in (11, 12))
        for file in (first, second):
            file.write_bytes(b"read by head_tissue alone")
        config = qsm_ci_command.QsmCiExperimentConfig(
            out=tmp_path,
            labels=first,
            further_heads=(second,),
            worlds=("mc",),
            makers=("chisep",),
            stages=("r2prime-generation",),
        )
        qsm_ci_command.qsm_ci_worlds(config)
        found = json.loads((tmp_path / "qsm-ci.json").read_text())
        assert {one["Method"] for one in found["Rows"]} == set(rows.METHODS["r2prime-generation"])
        assert [(one["Head"], one["Method"]) for one in found["FurtherHeads"]] == [("head-12", rows.DEFAULT)]
        assert (tmp_path / "head-12" / "worlds" / "chisep" / "mc").is_dir()
        with pytest.raises(InputError, match="the same file name"):
            replace(config, further_heads=(first,))
        with pytest.raises(InputError, match="no such file"):
            replace(config, further_heads=(tmp_path / "head-13_dseg.nii.gz",))


class TestReproducibility:
    def test_pairs(self):
        listed = scans.scans()
        pairs = scans.comparisons(listed)
        assert len(listed) == 15
        assert {name: len(found) for name, found in pairs.items()} == {
            "runs": 15,
            "scanners": 3,
            "protocols": 18,
        }

    def test_agreement(self):
        first = {str(n): {"chi": 10.0 * n} for n in range(8)}
        second = {str(n): {"chi": 11.0 * n + 2} for n in range(8)}
        found = command.agreement({"a": first, "b": second}, [("a", "b")], "chi")
        swapped = command.agreement({"a": first, "b": second}, [("b", "a")], "chi")
        assert found["MeanSlopeError"] == pytest.approx(0.1)
        assert swapped["MeanSlopeError"] == pytest.approx(1 - 1 / 1.1)
        assert found["BiasPpb"] == pytest.approx(5.5)
        assert found["LimitsPpb"] == pytest.approx(1.96 * np.std(np.arange(8), ddof=1))

    def _found(self, methods=("unrolled",)):
        """Results of scans whose region means are those of a phantom times a factor of the protocol."""
        listed = scans.scans()
        factors = {"A": 1.0, "B": 1.02, "C": 0.9, "D": 1.0}
        labels = ("11", "52", "2", "3")
        of = {
            scan.name: {
                label: dict.fromkeys(command.MAPS, 10.0 * (n + 1) * factors[scan.protocol.name])
                for n, label in enumerate(labels)
            }
            for scan in listed
        }
        truth = {name: {label: of["A1-run1"][label] for label in labels} for name in of}
        perfect = {name: truth[name] for name in of if name.endswith("run1")}
        means = dict.fromkeys(methods, of) | {"truth": truth, "unrolled, true field": perfect}
        return {
            **{"Head": "packaged head", "VoxelMm": 2.0, "Code": "0123456789abcdef"},
            **{"Methods": list(methods), "Rows": command.rows_of(means, listed)},
            **{"Pairs": command.pairs_of(means, listed), "Means": means},
        }

    def test_page_has_agreement_pairs_and_budget(self):
        text = reproducibility_page.page(self._found())
        assert "| unrolled | runs | χ_pos | 15 | 0.000 | +0.00 | ±0.00 |" in text
        assert "| D | 7 | 1.8 × 1.8 × 1.8 | 4, 9, 14, 19 | 60 |" in text
        assert "| A–C | χ | 0.900 |" in text
        assert "- unrolled: no map" in text
        assert "| unrolled, true field | 0.000 | 0.000 | 0.000 |" in text
        assert "| truth | 0.000 | 0.000 | 0.000 |" in text

    def test_the_region_that_moves_a_slope_is_named(self):
        means = {
            f"{name}1-run1": {str(label): dict.fromkeys(command.MAPS, float(x)) for label, x in regions}
            for name, regions in (
                ("A", [(11, 10), (52, 100), (2, 20), (3, 30)]),
                ("B", [(11, 10), (52, 80), (2, 20), (3, 30)]),
            )
        }
        found = command.pairs_of({"unrolled": means}, scans.scans())
        assert {(one["Pair"], one["Region"]) for one in found} == {("A–B", 52)}
        assert found[0]["Slope"] == pytest.approx(0.77, abs=0.02)

    def test_figure_shows_every_pair_of_protocols(self):
        figure = reproducibility_page.figure(self._found())
        assert len(figure.axes) == 3
        assert [text.get_text() for text in figure.legends[0].get_texts()] == [
            *("A and B", "A and C", "A and D", "B and C", "B and D", "C and D"),
        ]
