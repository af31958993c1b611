from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chisep.errors import InputError
from chisep.io import bids, nifti
from chisep.simulation.dataset import TRUTH, SimulateConfig, simulate


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()
    }


@pytest.fixture(scope="module")
def made(coarse_file, tmp_path_factory) -> Path:
    """Two subjects, phase in scanner units, head oblique."""
    out = tmp_path_factory.mktemp("simulated")
    lines: list[str] = []
    config = SimulateConfig(
        out=out,
        subjects=2,
        labels=(coarse_file,),
        voxel_mm=4.0,
        phase_units="arbitrary",
        tilt_deg=(15.0, 0.0, 0.0),
    )
    assert simulate(config, lines.append) == ["01", "02"]
    assert len(lines) == 2
    return out


def test_chisep_reads_the_dataset_back(made):
    first, second = bids.find_sessions(made)
    assert (first.subject, second.subject) == ("01", "02")
    assert first.megre.te_s == (0.005, 0.011, 0.017, 0.023, 0.029)
    assert first.megre.b0_t == 3.0
    assert first.megre.phase_units == "arbitrary"
    assert first.mese is not None
    assert first.mese.te_s == (0.015, 0.03, 0.045, 0.06, 0.075, 0.09)
    phase = nifti.load(first.megre.phase[0])
    assert 0 <= phase.data.min() < phase.data.max() <= 4095
    direction = nifti.b0_direction_of(phase.affine)
    np.testing.assert_allclose(direction, (0, np.sin(np.deg2rad(15)), np.cos(np.deg2rad(15))), atol=1e-5)


def test_truth_is_complete_and_consistent(made):
    def truth(suffix: str, desc: str | None = None) -> np.ndarray:
        path = bids.derivative_path(made / TRUTH, "01", suffix, desc=desc)
        assert bids.sidecar_of(path).is_file()
        return nifti.load(path).data

    pos, neg = truth("Chimap", "paramagnetic"), truth("Chimap", "diamagnetic")
    mask, labels = truth("mask", "brain") > 0, truth("dseg")
    assert pos.min() >= 0
    assert neg.min() >= 0
    np.testing.assert_allclose(truth("Chimap", "total"), pos - neg, atol=1e-6)
    np.testing.assert_allclose(truth("R2primemap"), 114 * (pos + neg), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(truth("R2starmap"), truth("R2map") + truth("R2primemap"), rtol=1e-5)
    for volume in (pos, neg, truth("R2map"), truth("fieldmap", "local")):
        assert not volume[~mask].any()
        assert volume[mask].any()
    table = (made / TRUTH / "dseg.tsv").read_text().splitlines()
    named = {int(row.split("\t")[0]) for row in table[1:]}
    assert table[0] == "index\tname"
    assert set(np.unique(labels).astype(int)) <= named


def test_sidecars_state_units_and_relaxivity(made):
    def facts(suffix: str, desc: str | None = None) -> dict:
        return json.loads(
            bids.derivative_path(made / TRUTH, "01", suffix, desc=desc, ext=".json").read_text()
        )

    assert facts("Chimap", "total")["Units"] == "ppm"
    assert facts("fieldmap", "local")["Units"] == "ppm"
    assert facts("R2primemap")["Units"] == "1/s"
    assert facts("R2primemap")["DrPositiveHzPerPpm"] == 114.0


def test_the_bids_validator_has_no_errors(made):
    validator = Path(sys.executable).with_name("bids-validator-deno")
    done = subprocess.run([validator, made, "--json"], capture_output=True, text=True, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue.get("severity") == "error"] == []
    assert done.returncode == 0


def test_equal_seeds_give_equal_bytes_and_subjects_do_not_depend_on_their_number(coarse_file, tmp_path):
    def dataset(name: str, **options: object) -> dict[str, bytes]:
        config = SimulateConfig(
            out=tmp_path / name, labels=(coarse_file,), voxel_mm=6.0, megre_only=True, **options
        )
        simulate(config)
        return contents(config.out)

    one, two, other = (
        dataset("one", subjects=2),
        dataset("two", subjects=1),
        dataset("three", subjects=1, seed=1),
    )
    shared = [name for name in two if name.startswith(("sub-01", str(TRUTH / "sub-01")))]
    assert len(shared) == 2 * (2 * 5 + 9)
    assert all(one[name] == two[name] for name in shared)
    assert dataset("again", subjects=2) == one
    images = [name for name in shared if name.endswith("MEGRE.nii.gz") or "Chimap.nii" in name]
    assert all(other[name] != two[name] for name in images)
    assert all(one[name] != one[name.replace("sub-01", "sub-02")] for name in images)
    assert not any("MESE" in name for name in one)


def test_label_maps_are_used_in_turn(coarse, coarse_file, tmp_path):
    other = nifti.save(tmp_path / "flipped_dseg.nii.gz", coarse.labels[::-1], coarse.affine, dtype=np.int16)
    config = SimulateConfig(
        out=tmp_path / "bids", subjects=3, labels=(coarse_file, other), voxel_mm=8.0, megre_only=True
    )
    simulate(config)
    rows = (tmp_path / "bids" / "participants.tsv").read_text().splitlines()
    assert [row.split("\t")[-1] for row in rows[1:]] == [coarse_file.name, other.name, coarse_file.name]


def test_a_wrong_label_map_leaves_nothing_behind(tmp_path):
    out = tmp_path / "bids"
    with pytest.raises(InputError, match=r"missing\.nii\.gz"):
        simulate(SimulateConfig(out=out, labels=(tmp_path / "missing.nii.gz",)))
    assert not out.exists()


@pytest.mark.parametrize("values", [{"subjects": 0}, {"seed": -1}])
def test_impossible_datasets_are_refused(tmp_path, values):
    with pytest.raises(InputError, match=next(iter(values))):
        SimulateConfig(out=tmp_path, **values)
