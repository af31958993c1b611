"""Results are checked before they are written: the step that made them is blamed, and nothing is left."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from chisep import cli
from chisep.errors import ResultError
from chisep.io import nifti
from chisep.io.weights import load_weights, save_weights
from chisep.networks.inference import NetworkOptions
from chisep.pipeline.config import RunConfig
from chisep.pipeline.outputs import OUTPUTS
from chisep.pipeline.result_checks import check_result
from chisep.pipeline.run import run
from tests.untrained import save_untrained

SHAPE = (10, 10, 10)
ENDINGS = ("nii.gz", "json")


def of(value: float, count: int = 1000) -> np.ndarray:
    """A map of ones, `count` of its voxels with another value."""
    volume = np.ones(SHAPE, dtype=np.float32)
    volume.reshape(-1)[:count] = value
    return volume


class TestOneMap:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("key", ["qsm", "unwrapped", "total_field", "r2star"])
    def test_one_value_that_is_no_number(self, key, value):
        with pytest.raises(ResultError, match="stage x of sub-01: found 1 values that are NaN or infinite"):
            check_result(key, of(value, 1), "stage x of sub-01")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("chi_pos", 6),
            ("chi_pos", -0.1),
            ("qsm", -30),
            ("r2star", 501),
            ("quality", 1.1),
            ("residual", -1),
        ],
    )
    def test_values_beyond_the_limits(self, key, value):
        with pytest.raises(ResultError, match="beyond the limits"):
            check_result(key, of(value), "stage x")
        check_result(key, of(value, 9), "stage x")  # less than 1 % are stray voxels

    def test_a_user_can_insist_on_large_values_but_not_on_nan(self):
        check_result("qsm", of(30), "method x", any_size=True)
        with pytest.raises(ResultError, match="NaN"):
            check_result("qsm", of(np.nan), "method x", any_size=True)

    def test_a_single_voxel_far_beyond(self):
        with pytest.raises(ResultError, match="to 1e"):
            check_result("chi_pos", of(1e6, 1), "stage x")

    @pytest.mark.parametrize("key", ["mask", "phase_mask", "eroded_mask"])
    def test_an_empty_mask(self, key):
        with pytest.raises(ResultError, match="no voxel"):
            check_result(key, np.zeros(SHAPE, dtype=bool), "stage x")
        check_result(key, np.ones(SHAPE, dtype=bool), "stage x")

    def test_a_scan_without_a_reliable_voxel(self):
        check_result("reliable_mask", np.zeros(SHAPE, dtype=bool), "stage x")

    def test_maps_of_zeros_and_the_limits_themselves_are_fine(self):
        for key, output in OUTPUTS.items():
            if output.extension == ".nii.gz" and output.suffix != "mask":
                check_result(key, np.zeros(SHAPE, dtype=np.float32), "stage x")
            for limit in output.limits or ():
                if np.isfinite(limit):
                    check_result(key, np.full(SHAPE, limit, dtype=np.float32), "stage x")

    def test_every_map_with_a_unit_has_limits_but_the_phase(self):
        lacking = {key for key, output in OUTPUTS.items() if output.unit and output.limits is None}
        assert lacking == {"unwrapped"}


def wild(folder: Path, name: str) -> str:
    """Weights whose numbers are finite and whose result is 1000 ppm."""
    tensors, header = load_weights(save_untrained(folder, name))
    tensors["outputs.mean"] += 1000
    return str(save_weights(folder / "wild.safetensors", tensors, header))


def test_a_stage_with_such_a_result_writes_nothing_and_is_blamed(raw_session, tmp_path):
    network = NetworkOptions(weights=wild(tmp_path, "chi-sepnet-r2p"))
    out = tmp_path / "out"
    (result,) = run(RunConfig(raw_session, out, method="chi-sepnet-r2p", qsm="tkd", network=network))
    assert isinstance(result.error, ResultError)
    text = str(result.error)
    assert text.startswith("stage separation of sub-01: found values from")
    assert "ppm" in text
    assert {path.name for path in out.rglob("*Chimap.*")} == {f"sub-01_desc-qsm_Chimap.{e}" for e in ENDINGS}
    assert not list(out.rglob("*separation*"))


class TestSingleMaps:
    @pytest.fixture
    def maps(self, tmp_path) -> dict[str, str]:
        rng = np.random.default_rng(0)
        mask = np.zeros((16, 16, 16), np.float32)
        mask[2:-2, 2:-2, 2:-2] = 1
        volumes = {
            "field": 0.01 * rng.standard_normal(mask.shape).astype(np.float32) * mask,
            "r2prime": 5 * mask,
            "mask": mask,
        }
        return {
            name: str(nifti.save(tmp_path / f"{name}.nii.gz", data, np.eye(4)))
            for name, data in volumes.items()
        }

    def test_qsm(self, maps, tmp_path, capsys):
        out = tmp_path / "results" / "chi.nii.gz"
        command = ["qsm", "--field", maps["field"], "--mask", maps["mask"], "--out", str(out)]
        command += ["--method", "qsmnet", "--weights", wild(tmp_path, "qsmnet")]
        assert cli.main(command) == 1
        assert "method qsmnet: found values from" in " ".join(capsys.readouterr().err.split())
        assert not out.exists()
        assert not out.with_name("chi.json").exists()

    def test_separate(self, maps, tmp_path, capsys):
        out = tmp_path / "results"
        command = ["separate", *(word for name, file in maps.items() for word in (f"--{name}", file))]
        command += ["--b0", "3", "--out", str(out), "--method", "chi-sepnet-r2p"]
        assert cli.main([*command, "--weights", wild(tmp_path, "chi-sepnet-r2p")]) == 1
        assert "method chi-sepnet-r2p: found values from" in " ".join(capsys.readouterr().err.split())
        assert not list(out.glob("*"))


def test_limits_survive_a_process_boundary():
    import pickle

    with pytest.raises(ResultError) as caught:
        check_result("qsm", of(np.nan), "stage qsm of sub-01")
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, ResultError)
    assert str(again) == str(caught.value)
    assert json.dumps(asdict(OUTPUTS["qsm"]))
