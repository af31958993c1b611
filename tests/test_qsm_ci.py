"""The command `qsm-ci`: files, grid and coverage of every stage; submissions in the benchmark's runner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from qsm_ci.runner import _consumes, _optional
from qsm_ci.stages import ARTIFACT_FILE, STAGES

from chisep import cli
from chisep.api.qsm_ci import QsmCiConfig, command, qsm_ci
from chisep.api.qsm_ci.dephasing import dephasing_of, equivalent_r2prime
from chisep.api.qsm_ci.stages import LEAST, whole
from chisep.errors import ChisepWarning, InputError
from chisep.io import nifti
from chisep.methods.given_chi import agrees_with_field, field_misfit, with_chi
from chisep.physics.dipole import Dipole
from chisep.physics.signal import hz_per_ppm
from chisep.types import Grid, Maps, Relaxivity, Sources

SUBMISSIONS = Path(__file__).parents[1] / "qsm-ci"
SHAPE, VOXEL_MM, B0_T, TE_S = (26, 28, 24), (3.0, 3.0, 3.2), 3.0, (0.004, 0.010, 0.016)
AFFINE = np.diag([*VOXEL_MM, 1.0])

pytestmark = pytest.mark.filterwarnings("default::chisep.errors.ChisepWarning")  # so small an object


def _ball(radius_mm, centre=(0.0, 0.0, 0.0)):
    axes = [(np.arange(n) - (n - 1) / 2) * edge for n, edge in zip(SHAPE, VOXEL_MM, strict=True)]
    i, j, k = np.meshgrid(*axes, indexing="ij")
    return (i - centre[0]) ** 2 + (j - centre[1]) ** 2 + (k - centre[2]) ** 2 < radius_mm**2


@pytest.fixture(scope="module")
def world() -> dict[str, np.ndarray]:
    """A ball of tissue with one nucleus of each source, and a source outside, at 3 T."""
    rng = np.random.default_rng(0)
    mask = _ball(30.0)
    pos = 0.02 * mask + 0.1 * _ball(7.0, (-10, 0, 0))
    neg = 0.01 * mask + 0.05 * _ball(7.0, (10, 0, 0))
    grid = Grid(SHAPE, VOXEL_MM)
    local = Dipole(grid).apply(torch.from_numpy((pos - neg).astype(np.float32))).numpy()
    outside = 2.0 * _ball(4.0, (0, 0, 36))
    background = Dipole(grid).apply(torch.from_numpy(outside.astype(np.float32))).numpy()
    total = local + background
    r2prime = 114 * (pos + neg)
    signal = np.stack(
        [np.exp(-te * (14 + r2prime) + 2j * np.pi * hz_per_ppm(B0_T) * te * total) for te in TE_S]
    )
    signal = signal * np.where(mask, 1.0, 0.02)
    signal = signal + 0.005 * (rng.standard_normal(signal.shape) + 1j * rng.standard_normal(signal.shape))
    signal = np.moveaxis(signal, 0, -1)
    return {
        "phase": np.angle(signal),
        "magnitude": np.abs(signal),
        "mask": mask.astype(np.uint8),
        "totalfield": total * mask,
        "localfield": local * mask,
        "chimap": (pos - neg) * mask,
        "r2prime": r2prime * mask,
        "chi-para": pos * mask,
        "chi-dia": neg * mask,
    }


def folder(world, path, names):
    for name in names:
        if name != "params":
            nifti.save(path / f"{name}.nii.gz", world[name], AFFINE)
    parameters = {"TE": list(TE_S), "B0": B0_T, "B0_dir": [0, 0, 1], "voxel_size": list(VOXEL_MM)}
    path.mkdir(parents=True, exist_ok=True)
    (path / "params.json").write_text(json.dumps(parameters))
    return path


class TestStages:
    def test_the_benchmark_has_these_stages(self):
        assert set(command.STAGES) == set(STAGES)

    @pytest.mark.parametrize("stage", sorted(STAGES))
    def test_files_grid_and_coverage(self, world, tmp_path, stage):
        given = folder(world, tmp_path / "in", STAGES[stage]["consumes"])
        assert cli.main(["qsm-ci", str(given), str(tmp_path / "out"), "--stage", stage]) == 0
        made = {path.name for path in (tmp_path / "out").iterdir()}
        assert made == {ARTIFACT_FILE[name] for name in STAGES[stage]["produces"]}
        for name in made:
            image = nib.load(tmp_path / "out" / name)
            values = np.asarray(image.dataobj)
            assert image.shape == SHAPE
            np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
            assert np.isfinite(values).all()
            if name == "mask.nii.gz":
                assert set(np.unique(values)) == {0, 1}
                continue
            inside = world["mask"] > 0
            assert (values[inside] != 0).all()
            assert not values[~inside].any()
            truth = world[name.removesuffix(".nii.gz")]
            assert np.corrcoef(values[inside], truth[inside])[0, 1] > 0.5

    @pytest.mark.parametrize(
        ("names", "stage"),
        [
            (("localfield", "r2prime", "chimap", "magnitude", "mask"), "chi-separation"),
            (("phase", "magnitude", "mask"), "end-to-end"),
            (("totalfield", "mask", "magnitude"), "bfr+dipole"),
            (("totalfield", "mask"), "bfr"),
            (("localfield", "mask", "magnitude"), "dipole"),
            (("magnitude", "mask"), "r2prime-generation"),
            (("magnitude",), "brain-extraction"),
        ],
    )
    def test_stage_from_inputs(self, world, tmp_path, monkeypatch, names, stage):
        seen = []

        def noted(name):
            def run(_inputs, _method):
                seen.append(name)
                return command.stages.Outputs({})

            return command.Stage(run)

        fake = {name: noted(name) for name in command.STAGES}
        monkeypatch.setattr(command, "STAGES", fake)
        qsm_ci(QsmCiConfig(folder(world, tmp_path / "in", names), tmp_path / "out"))
        assert seen == [stage]

    def test_three_dimensional_phase_is_one_echo(self, world, tmp_path):
        given = folder(world, tmp_path / "in", ("mask",))
        for name in ("phase", "magnitude"):
            nifti.save(given / f"{name}.nii.gz", world[name][..., 0], AFFINE)
        (given / "params.json").write_text(json.dumps({"TE": TE_S[:1], "B0": B0_T, "B0_dir": [0, 0, 1]}))
        with pytest.warns(ChisepWarning, match="one echo"):
            qsm_ci(QsmCiConfig(given, tmp_path / "out", stage="field-mapping"))
        assert nib.load(tmp_path / "out" / "totalfield.nii.gz").shape == SHAPE


class TestBadInput:
    @pytest.mark.parametrize(
        ("names", "config", "message"),
        [
            ((), {}, "no input of a stage"),
            (("mask",), {"stage": "dipole"}, r"localfield\.nii\.gz"),
            (("localfield", "mask"), {"method": "unrolled"}, "unrolled"),
            (("totalfield", "mask"), {"method": "tv"}, "inverts nothing"),
        ],
    )
    def test_message_and_nothing_written(self, world, tmp_path, names, config, message):
        given = folder(world, tmp_path / "in", names)
        with pytest.raises(InputError, match=message):
            qsm_ci(QsmCiConfig(given, tmp_path / "out", **config))
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("text", ['{"B0": 3}', '{"B0": 3, "B0_dir": [0, 1]}', "no JSON"])
    def test_parameters(self, world, tmp_path, text):
        given = folder(world, tmp_path / "in", ("localfield", "mask"))
        (given / "params.json").write_text(text)
        with pytest.raises(InputError, match=r"params\.json"):
            qsm_ci(QsmCiConfig(given, tmp_path / "out"))

    def test_echo_times_are_as_many_as_echoes(self, world, tmp_path):
        given = folder(world, tmp_path / "in", ("magnitude", "mask"))
        (given / "params.json").write_text(json.dumps({"TE": [0.004], "B0": 3, "B0_dir": [0, 0, 1]}))
        with pytest.raises(InputError, match="3 echoes; expected 1"):
            qsm_ci(QsmCiConfig(given, tmp_path / "out"))


class TestWhole:
    def test_nearest_value_and_least_value(self):
        volume = torch.tensor([[[1.0, 0.0, 5.0, 7.0, 9.0]]])
        known = torch.tensor([[[True, True, False, True, True]]])
        mask = torch.tensor([[[True, True, True, True, False]]])
        found = whole(volume, known, mask).flatten().tolist()
        assert found[0] == 1.0
        assert found[1] == pytest.approx(LEAST)
        assert found[2] in (pytest.approx(LEAST), 7.0)
        assert found[3:] == [7.0, 0.0]


class TestGivenChi:
    def maps(self, world, chi):
        volumes = (torch.from_numpy(np.asarray(one, np.float32)) for one in (world["localfield"], chi))
        field, chi = volumes
        return Maps(field, torch.from_numpy(world["mask"] > 0), Grid(SHAPE, VOXEL_MM), chi_ppm=chi)

    def test_the_map_that_made_the_field_agrees_and_a_scaled_one_does_not(self, world):
        assert field_misfit(self.maps(world, world["chimap"])) < 0.02
        assert field_misfit(self.maps(world, 0.8 * world["chimap"])) == pytest.approx(0.2, abs=0.02)
        assert not agrees_with_field(self.maps(world, 0.8 * world["chimap"]))

    def test_projection(self):
        random = torch.Generator().manual_seed(0)
        pos, neg, of_pos, of_neg = torch.rand((4, 3, 4, 5), generator=random)
        chi, mask = torch.randn((3, 4, 5), generator=random), torch.ones((3, 4, 5), dtype=torch.bool)
        made = with_chi(Sources(pos, neg, chi_pos_sigma_ppm=of_pos, chi_neg_sigma_ppm=of_neg), chi, mask)
        torch.testing.assert_close(made.chi_pos_ppm - made.chi_neg_ppm, chi)
        assert made.chi_pos_ppm.min() >= 0
        assert made.chi_neg_ppm.min() >= 0

        # No other sources of this χ are nearer, in standard deviations.
        def distance(new_pos):
            return ((new_pos - pos) / of_pos) ** 2 + ((new_pos - chi - neg) / of_neg) ** 2

        for step in (-1e-3, 1e-3):
            other = torch.maximum(made.chi_pos_ppm + step, chi.clamp_min(0))
            assert (distance(other) >= distance(made.chi_pos_ppm) - 1e-6).all()


class TestSubmissions:
    FOLDERS = sorted(path.parent for path in SUBMISSIONS.glob("*/algorithm.yml"))

    def test_one_for_each_stage(self):
        stages = [yaml.safe_load((path / "algorithm.yml").read_text())["stage"] for path in self.FOLDERS]
        assert sorted(stages) == sorted(STAGES)

    @pytest.mark.parametrize("path", FOLDERS, ids=lambda path: path.name)
    def test_the_runner_gives_it_all_inputs_of_its_stage(self, path):
        algorithm = yaml.safe_load((path / "algorithm.yml").read_text())
        assert algorithm["slug"] == path.name
        assert set(_consumes(algorithm)) >= set(STAGES[algorithm["stage"]]["consumes"])
        optional = {name for name in _consumes(algorithm) if _optional(algorithm, name)}
        assert optional == set(algorithm.get("optional_inputs", []))
        assert f"--stage '{algorithm['stage']}'" in (path / "run.sh").read_text()

    def test_local_runner_executes_and_scores(self, world, tmp_path):
        for name in ("localfield", "r2prime", "chimap", "mask", "chi-para", "chi-dia"):
            nifti.save(tmp_path / f"{name}.nii.gz", world[name], AFFINE)
        folder(world, tmp_path, ())
        programs = Path(sys.executable).parent
        inputs = ("localfield", "r2prime", "chimap", "mask")
        done = subprocess.run(
            [programs / "qsm-ci", "run", SUBMISSIONS / "chisep-separation", "--runner", "local"]
            + ["--params", tmp_path / "params.json"]
            + [word for name in inputs for word in (f"--{name}", tmp_path / f"{name}.nii.gz")]
            + ["--truth", f"{tmp_path}/", "-o", f"{tmp_path / 'out'}/"],
            capture_output=True,
            text=True,
            env=os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("xsim") == 2
        assert [line.split()[1] for line in done.stdout.splitlines() if "coverage" in line] == ["1.0000"] * 2


class TestDephasing:
    """Which sources dephase, where χ is known."""

    GRID = Grid((48, 48, 48), (2.0, 2.0, 2.0), affine=np.diag([2.0, 2.0, 2.0, 1.0]))

    def _sources(self):
        """White matter with nuclei that have the atlas's χ_neg; texture in all of it."""
        rng = np.random.default_rng(0)
        i, j, k = np.meshgrid(*((np.arange(48) - 23.5) * 2.0,) * 3, indexing="ij")
        radius = np.sqrt(i**2 + j**2 + k**2)
        pos, neg = np.full(radius.shape, 0.017), 0.047 + 0.008 * rng.standard_normal(radius.shape)
        grey = radius < 26
        iron = radius < 14
        pos[grey], neg[grey] = 0.06, 0.02
        pos[iron], neg[iron] = 0.13, 0.012
        pos *= 1 + 0.1 * rng.standard_normal(radius.shape)
        mask = radius < 44
        return tuple(torch.from_numpy((x.clip(0) * mask).astype(np.float32)) for x in (pos, neg)), mask

    @pytest.mark.parametrize("white_only", [True, False])
    @pytest.mark.parametrize("ratio", [0.82, 2.0])
    def test_the_model_of_the_scan_is_found_with_its_d_r(self, white_only, ratio):
        (pos, neg), mask = self._sources()
        of_neg = torch.where(pos > neg, 0.0, 320.0 * ratio) if white_only else 320.0 * ratio
        maps = Maps(
            field_ppm=Dipole(self.GRID).apply(pos - neg),
            mask=torch.from_numpy(mask),
            grid=self.GRID,
            r2prime_hz=320 * pos + of_neg * neg,
            chi_ppm=pos - neg,
            b0_t=7.0,
        )
        found = dephasing_of(maps, 7.0, chi_is_true=True)
        assert found.neg_in_diamagnetic_only == white_only
        assert found.relaxivity.pos_hz_per_ppm == pytest.approx(320, rel=0.15)
        assert found.relaxivity.neg_hz_per_ppm == pytest.approx(320 * ratio, rel=0.3)
        rate = found.r2prime_hz(maps)
        expected = found.relaxivity.pos_hz_per_ppm * pos + found.relaxivity.neg_hz_per_ppm * neg
        assert float((rate - expected).abs().mean() / expected.mean()) < 0.15

    def test_without_a_known_chi_both_sources_dephase(self):
        (pos, neg), mask = self._sources()
        maps = Maps(pos - neg, torch.from_numpy(mask), self.GRID, r2prime_hz=None, b0_t=3.0)
        found = dephasing_of(maps, 3.0, chi_is_true=False)
        assert not found.neg_in_diamagnetic_only
        assert found.source == "default"

    def test_equivalent_r2prime_has_the_same_sources(self):
        (pos, neg), _ = self._sources()
        of_pos, of_neg = 200 + 1000 * pos, 300 - 1000 * neg
        d_r = Relaxivity(320.0, 260.0)
        rate = equivalent_r2prime(of_pos * pos + of_neg * neg, pos - neg, (of_pos, of_neg), d_r)
        torch.testing.assert_close(rate, 320 * pos + 260 * neg, rtol=1e-3, atol=1e-3)
