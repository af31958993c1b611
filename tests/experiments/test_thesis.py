"""The thesis' experiments, end to end on eight heads of a quarter of the size, with networks of no skill."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chisep import cli
from chisep.cli.arguments import parse
from chisep.errors import ChisepWarning, InputError
from chisep.experiments.common.lesions import GRADED
from chisep.experiments.common.results import cached_result
from chisep.experiments.common.scores import mean_and_sd, scores
from chisep.experiments.common.texts import plus_minus
from chisep.experiments.thesis.ablations import ThesisAblationsConfig, ablations, chi_of, make_qsm_maps, runs
from chisep.experiments.thesis.data import (
    REFERENCES,
    SUBJECTS,
    TEST,
    TRAIN,
    VALIDATION,
    ThesisConfig,
    dataset_of,
    first_scan,
    folders,
    load_case,
    record_of,
)
from chisep.experiments.thesis.networks import NetworksConfig, train_networks
from chisep.experiments.thesis.patients import (
    GradedPatient,
    PatientsConfig,
    graded_patient,
    patients,
    read_lesions,
)
from chisep.experiments.thesis.patients import summarised as lesion_summary
from chisep.experiments.thesis.pictures import FiguresConfig, pictures
from chisep.experiments.thesis.qsm import QsmExperimentConfig, qsm
from chisep.experiments.thesis.rows import RECIPES, ROWS, UNROLLED, qsmnet_chi, row_of, weights_path
from chisep.experiments.thesis.table import COLUMNS, subject_row, summarised
from chisep.io import bids, nifti
from chisep.methods import invert
from chisep.metrics import nrmse_demeaned_percent, nrmse_percent
from chisep.networks.config import SOURCES
from chisep.physics.dipole import Dipole
from chisep.pipeline.labelled_dataset import LabelledConfig
from chisep.simulation.anatomy import packaged_labels
from chisep.simulation.dataset import TRUTH, healthy_tissue
from chisep.training.data import acquisition_path, field_maps
from chisep.types import Sources
from tests.untrained import save_untrained

# Large voxels have few lesions' worth of white matter.
LESIONS = {"strengths_ppb": (100.0, 300.0, 600.0), "size_mm": 9.0, "separation_mm": 0.0}


@pytest.fixture(scope="module")
def thesis(make_once) -> ThesisConfig:
    """The dataset: every sixth voxel of the packaged head, shrunk to half its size, at 4 mm."""

    def config(folder: Path) -> ThesisConfig:
        return ThesisConfig(out=folder, labels=(folder / "small_dseg.nii.gz",), voxel_mm=4.0, jobs=1)

    def write(folder: Path) -> None:
        whole, made = packaged_labels(), config(folder)
        affine = whole.affine @ np.diag([3.0, 3.0, 3.0, 1.0])
        nifti.save(made.labels[0], whole.labels[::6, ::6, ::6], affine, dtype=np.int16)
        calls: list[tuple[str, int, int]] = []
        assert dataset_of(made, lambda *said: calls.append(said)) == folder / "dataset"
        assert calls[-1] == ("labels", 8, 8)

    folder = make_once("thesis", write)
    return replace(config(folder), dataset=folder / "dataset")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Random networks where training puts them."""
    folder = tmp_path_factory.mktemp("weights")
    for name, recipe in RECIPES.items():
        (folder / recipe).mkdir()
        save_untrained(folder, name).replace(folder / recipe / "weights.safetensors")
    return folder


def options(thesis: ThesisConfig, **more) -> dict:
    """Keywords of an experiment on the dataset."""
    return {**vars(thesis), **more}


def copied(thesis: ThesisConfig, folder: Path) -> Path:
    """Link the dataset into a folder where χ maps can be added to it."""
    derivatives = folder / "dataset" / "derivatives"
    derivatives.mkdir(parents=True)
    for part in (thesis.root / "derivatives").iterdir():
        (derivatives / part.name).symlink_to(part)
    return folder / "dataset"


def command(thesis: ThesisConfig, name: str, out: Path, *more: str) -> list[str]:
    """Call of an experiment on the dataset."""
    call = ["reproduce", name, str(out), "--labels", str(thesis.labels[0]), "--dataset", str(thesis.root)]
    return [*call, "--voxel-mm", "4", "--jobs", "1", *more]


# ---- data ----------------------------------------------------------------------------------------------


def test_heads_are_split_in_the_order_of_their_label_maps():
    assert SUBJECTS == (*TRAIN, *VALIDATION, *TEST) == tuple(f"{n:02d}" for n in range(1, 9))
    assert [len(part) for part in (TRAIN, VALIDATION, TEST)] == [4, 1, 3]


def test_the_dataset_is_that_of_the_simulation_command(tmp_path):
    heads = [str(tmp_path / f"head-{n}_dseg.nii.gz") for n in range(8)]
    call = [str(tmp_path / "dataset"), "--labels", *heads, "--subjects", "8", "--orientations", "6"]
    call += ["--maps-only", "--labels-from-orientations", "--jobs", "2", "--seed", "4", "--snr", "50"]
    call += ["--misregistration-mm", "0.4", "--misregistration-deg", "0.4"]
    call += ["--residual-background-ppb", "3.5", "--anisotropy-ppb", "16"]
    expected = parse(LabelledConfig, "simulate", call)
    assert ThesisConfig(out=tmp_path, labels=tuple(map(Path, heads))).simulation() == expected


def test_a_dataset_that_is_given_must_be_whole(thesis, tmp_path):
    empty = ThesisConfig(out=tmp_path, dataset=tmp_path / "nothing")
    with pytest.raises(InputError, match="no local field"):
        dataset_of(empty)
    with pytest.raises(InputError, match="no such file"):
        record_of(tmp_path, "06")
    with pytest.raises(InputError, match="voxel"):
        ThesisConfig(out=tmp_path, voxel_mm=-1.0)


@pytest.mark.parametrize("content", ["{", "[]", '{"Head": 1}'])
def test_a_damaged_record_is_refused(content, tmp_path):
    path = tmp_path / TRUTH / "sub-06" / "sub-06_simulation.json"
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="no record of a simulated subject") as raised:
        record_of(tmp_path, "06")
    assert str(path) in str(raised.value)


def test_a_head_can_be_made_again(thesis):
    tissue = healthy_tissue(thesis.simulation(), SUBJECTS.index("07"))
    case = load_case(thesis.root, "07")
    assert torch.equal(case.references["truth"].chi_pos_ppm, tissue.chi_pos_ppm * tissue.mask)
    assert torch.equal(case.references["truth"].chi_neg_ppm, tissue.chi_neg_ppm * tissue.mask)


def test_a_case_is_the_first_scan_in_its_units(thesis):
    case = load_case(thesis.root, "06")
    facts = bids.read_sidecar(
        thesis.root / "derivatives/maps/sub-06/anat/sub-06_acq-ori1_desc-local_fieldmap.nii.gz", thesis.root
    )
    np.testing.assert_allclose(case.maps.grid.b0_direction, facts["B0DirectionVoxelAxes"], atol=1e-6)
    assert case.maps.relaxivity is not None
    assert case.maps.relaxivity.pos_hz_per_ppm == 114
    mask = case.maps.mask
    expected = 114 * (case.references["truth"].chi_pos_ppm + case.references["truth"].chi_neg_ppm)[mask]
    assert float(case.maps.r2prime_hz[mask].mean()) == pytest.approx(float(expected.mean()), rel=0.3)
    assert bool((case.maps.r2star_hz[mask] >= case.maps.r2prime_hz[mask]).all())


def test_the_first_scan_can_be_made_again_without_the_dataset(thesis):
    case, again = load_case(thesis.root, "06"), first_scan(thesis, "06")
    for name in ("field_ppm", "r2prime_hz", "r2star_hz", "mask"):
        assert torch.equal(getattr(again.maps, name), getattr(case.maps, name)), name
    assert torch.equal(again.references["truth"].chi_neg_ppm, case.references["truth"].chi_neg_ppm)
    assert again.maps.grid.b0_direction == pytest.approx(case.maps.grid.b0_direction)


def test_scores_of_the_reference_itself_are_perfect(thesis):
    case = load_case(thesis.root, "06")
    label = case.references["label"]
    found = scores(label, label, case.maps.mask)
    for source in SOURCES:
        assert found[source]["nrmse_percent"] == 0
        assert found[source]["ssim"] == pytest.approx(1)
        assert found[source]["psnr_db"] is None, "infinite"
    twice = Sources(2 * label.chi_pos_ppm, label.chi_neg_ppm)
    found = scores(twice, label, case.maps.mask)
    assert found["chi_pos"]["nrmse_percent"] == pytest.approx(100)
    assert found["chi_neg"]["nrmse_percent"] == 0


def test_results_are_kept_as_long_as_their_key_is_equal(tmp_path):
    made = []

    def make() -> dict[str, int]:
        made.append(len(made))
        return {"value": len(made)}

    file = tmp_path / "cell.json"
    assert cached_result(file, {"Weights": ("a",)}, make) == {"value": 1}
    assert cached_result(file, {"Weights": ("a",)}, make) == {"value": 1}
    assert cached_result(file, {"Weights": ("b",)}, make) == {"value": 2}
    assert cached_result(file, {"Weights": ("a",)}, make) == {"value": 3}
    assert cached_result(tmp_path / "other.json", {"Weights": ("a",)}, make) == {"value": 4}


# ---- methods -------------------------------------------------------------------------------------------


def test_unknown_methods_and_missing_weights_are_named(weights, tmp_path):
    with pytest.raises(InputError, match="closed-form-qsmnet"):
        row_of("closed")
    with pytest.raises(InputError, match="reproduce networks"):
        weights_path("qsmnet", tmp_path)
    assert weights_path("unrolled-thesis", weights) == weights / "thesis-unrolled" / "weights.safetensors"
    needed = {name for row in ROWS.values() for name in row.needed}
    assert needed == set(RECIPES)


# ---- table ---------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=6))
def test_mean_and_sd_are_those_of_a_sample(values):
    found = mean_and_sd(values)
    assert found["mean"] == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert found["sd"] == pytest.approx(statistics.stdev(values), abs=1e-6)
    assert mean_and_sd([*values, None]) == {"mean": None, "sd": None}


def test_numbers_are_written_with_their_sd():
    assert plus_minus(33.456, 2.771, 2) == "33.46 ± 2.77"
    assert plus_minus(0.5, None, 1) == "0.5"
    assert plus_minus(None, None, 1) == "–"
    assert mean_and_sd([2.0]) == {"mean": 2.0, "sd": None}


def test_rows_are_means_over_subjects_in_the_order_of_methods():
    def cell(name: str, value: float) -> dict:
        metrics = {source: dict.fromkeys(COLUMNS, value) for source in SOURCES}
        return {"row": name, "seconds": value, **dict.fromkeys(REFERENCES, metrics)}

    cells = [cell(name, value) for value in (1.0, 2.0, 6.0) for name in reversed(ROWS)]
    found = summarised(cells[::-1])
    assert [row["row"] for row in found] == list(ROWS)
    assert found[0]["truth"]["chi_neg"]["ssim"]["mean"] == pytest.approx(3)
    assert found[0]["truth"]["chi_neg"]["ssim"]["sd"] == pytest.approx(7**0.5)
    assert found[0]["seconds"] == 3


@pytest.fixture(scope="module")
def tabulated(thesis, weights, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("table")
    assert cli.main(command(thesis, "table", out, "--weights-folder", str(weights))) == 0
    return out


def test_the_table_holds_every_method_and_the_published_figures(tabulated):
    found = json.loads((tabulated / "table.json").read_text())
    assert [row["row"] for row in found["Rows"]] == list(ROWS)
    assert len(found["Cells"]) == len(ROWS) * len(TEST)
    assert set(found["Weights"]) == set(RECIPES)
    assert found["Dataset"]["Options"]["snr"] == 50
    assert found["Rows"] == summarised(found["Cells"])
    page = (tabulated / "table.md").read_text()
    assert page.count("unrolled χ-sepnet-R2'") == 4
    assert "33.46 ± 2.83 | 47.52 ± 0.98 | 0.9431 ± 0.0060 |" in page
    assert (tabulated / "table.png").read_bytes().startswith(b"\x89PNG")
    assert str(tabulated.parent) not in (tabulated / "table.json").read_text(), "no paths of this machine"


def test_a_row_of_one_subject_can_be_derived_again(thesis, weights, tabulated):
    found = json.loads((tabulated / "table.json").read_text())["Cells"]
    for name in ("closed-form-qsmnet", "chi-sepnet-r2s", UNROLLED):
        (cell,) = (c for c in found if c["row"] == name and c["subject"] == "08")
        again = subject_row(thesis.root, "08", name, weights)
        for reference in REFERENCES:
            for source in SOURCES:
                assert again[reference][source] == pytest.approx(cell[reference][source], rel=1e-3)


def test_the_closed_form_gets_the_chi_of_the_networks(thesis, weights):
    case = load_case(thesis.root, "06")
    chi = qsmnet_chi(case.maps, weights)
    pos = ((chi + case.maps.r2prime_hz / 114) / 2 * case.maps.mask).clamp(min=0)
    truth = case.references["truth"].chi_pos_ppm
    found = subject_row(thesis.root, "06", "closed-form-qsmnet", weights)
    expected = nrmse_percent(pos.numpy(), truth.numpy(), case.maps.mask.numpy())
    assert found["truth"]["chi_pos"]["nrmse_percent"] == pytest.approx(expected, rel=1e-4)
    own = subject_row(thesis.root, "06", "closed-form", weights)
    assert own["truth"]["chi_pos"] != found["truth"]["chi_pos"]


def test_only_what_changed_is_computed_again(thesis, weights, tabulated, tmp_path):
    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (tabulated / "cells").iterdir()}

    before = times()
    (tabulated / "cells" / "sub-07_iterative.json").unlink()
    other = tmp_path / "weights"
    for recipe in RECIPES.values():
        (other / recipe).mkdir(parents=True)
        (other / recipe / "weights.safetensors").symlink_to(weights / recipe / "weights.safetensors")
    (other / "r2s" / "weights.safetensors").unlink()
    save_untrained(tmp_path, "r2s", seed=1).replace(other / "r2s" / "weights.safetensors")
    assert cli.main(command(thesis, "table", tabulated, "--weights-folder", str(other))) == 0
    changed = {name for name, time in times().items() if time != before.get(name)}
    assert changed == {"sub-07_iterative.json", *(f"sub-{s}_chi-sepnet-r2s.json" for s in TEST)}


# ---- figures -------------------------------------------------------------------------------------------


def test_the_final_estimate_is_that_of_the_table(thesis, weights, tmp_path):
    config = FiguresConfig(**options(thesis, out=tmp_path, weights_folder=weights, iterations=(1, 2)))
    written = pictures(config)
    assert [path.name for path in written] == [
        *(f"{n}-{s}.png" for s in SOURCES for n in ("2.2-estimates", "2.3-errors", "2.4-changes")),
        "estimates-nrmse.png",
        "estimates-nrmse.json",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[:-1])
    found = json.loads(written[-1].read_text())["NrmsePercent"]
    row = subject_row(thesis.root, "08", UNROLLED, weights)
    for reference in REFERENCES:
        for source in SOURCES:
            curves = [found[subject][reference][source] for subject in TEST]
            assert curves[-1][-1] == pytest.approx(row[reference][source]["nrmse_percent"], rel=1e-4)
            assert found["mean"][reference][source] == pytest.approx(np.mean(curves, axis=0))
            assert len(curves[0]) == 2
    with pytest.raises(InputError, match="2 at most"):
        pictures(replace(config, iterations=(1, 10)))
    with pytest.raises(InputError, match="1 or more"):
        replace(config, iterations=(0,))


# ---- patients ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graded(thesis) -> GradedPatient:
    return graded_patient(thesis, PatientsConfig(**options(thesis, **LESIONS)), "06")


def test_a_patient_is_the_same_head_with_lesions(thesis, graded):
    healthy, truth = load_case(thesis.root, "06"), graded.case.references["truth"]
    lesions = graded.patient.lesions
    assert {lesion.kind for lesion in lesions} == set(GRADED)
    far = ~torch.from_numpy(np.asarray(graded.patient.labels > 0))
    same = (truth.chi_pos_ppm - healthy.references["truth"].chi_pos_ppm).abs()[far & healthy.maps.mask] < 1e-6
    assert float(same.float().mean()) > 0.8
    for lesion in lesions:
        inside = graded.patient.labels == lesion.label
        volume = truth.chi_pos_ppm if lesion.kind == "hemorrhage" else truth.chi_neg_ppm
        assert 1000 * float(volume[inside].mean()) > 0.3 * lesion.strength_ppb
        # Blood makes R2' and field.
        assert float(graded.case.maps.r2prime_hz[inside].mean()) > float(
            healthy.maps.r2prime_hz[inside].mean()
        )
    assert graded.case.maps.grid.b0_direction == pytest.approx(healthy.maps.grid.b0_direction)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_slopes_of_known_predictions(graded, factor):
    truth = graded.case.references["truth"]
    half = Sources(0.5 * truth.chi_pos_ppm, 0.5 * truth.chi_neg_ppm)
    made = Sources(factor * truth.chi_pos_ppm, factor * truth.chi_neg_ppm + 0.01)
    read = read_lesions(graded, [half, made])
    found = lesion_summary([read, read])
    for kind, source in GRADED.items():
        assert found[kind]["slope"] == pytest.approx(factor, abs=1e-4)
        assert found[kind]["intercept_ppb"] == pytest.approx(10 if source == "chi_neg" else 0, abs=0.05)
        assert found[kind]["lesions"] == 2 * sum(lesion["kind"] == kind for lesion in read["lesions"])
    assert found["hemorrhage"]["nrmse_percent"]["mean"] == pytest.approx(100 - 100 * factor, abs=1e-3)
    assert [lesion["predicted_ppb"] for lesion in read["lesions"]] == read["estimates_ppb"][-1]
    for lesion, predicted, row in zip(
        read["lesions"], read["estimates_ppb"][0], graded.patient.lesions, strict=True
    ):
        assert predicted == pytest.approx(0.5 * lesion["assigned_ppb"], rel=1e-4)
        assert lesion["strength_ppb"] == row.strength_ppb
        known = row.chi_pos_ppb if row.kind == "hemorrhage" else row.chi_neg_ppb
        assert lesion["assigned_ppb"] == pytest.approx(known, rel=1e-4)


def test_the_heads_must_be_those_of_the_dataset(thesis, tmp_path):
    config = PatientsConfig(**options(thesis, **LESIONS))
    with pytest.raises(InputError, match="made with other seed"):
        graded_patient(replace(thesis, seed=5), config, "06")
    with pytest.raises(InputError, match="made with other voxel_mm"):
        graded_patient(replace(thesis, voxel_mm=5.0), config, "06")
    image = nifti.load(thesis.labels[0], dtype=np.int16)
    other = nifti.save(tmp_path / "other_dseg.nii.gz", image.data[::-1], image.affine, dtype=np.int16)
    with pytest.raises(InputError, match="another head as subject 06"):
        graded_patient(replace(thesis, labels=(other,)), config, "06")
    for wrong in ({"strengths_ppb": (1.0, 2.0)}, {"strengths_ppb": (1.0, 2.0, -3.0)}, {"size_mm": 0.0}):
        with pytest.raises(InputError):
            replace(config, **wrong)


def test_every_method_is_tried_on_lesions(thesis, weights, tmp_path):
    config = PatientsConfig(**options(thesis, out=tmp_path, weights_folder=weights, **LESIONS))
    written = patients(config)
    assert [path.name for path in written] == [
        "patients.md",
        "patients.json",
        "2.5-lesions.png",
        "estimates-slope.png",
    ]
    found = json.loads(written[1].read_text())
    assert list(found["Rows"]) == list(ROWS)
    assert found["Options"]["strengths_ppb"] == list(LESIONS["strengths_ppb"])
    for kind in GRADED:
        # All methods see the same lesions.
        assert len({row[kind]["lesions"] for row in found["Rows"].values()}) == 1
        last = found["IntermediateEstimates"][kind][-1]["slope"]
        assert last == pytest.approx(found["Rows"][UNROLLED][kind]["slope"])
        line = found["Rows"]["closed-form"][kind]
        assert line["slope_low"] < line["slope"] < line["slope_high"]
    assert found["Rows"]["iterative"]["hemorrhage"]["slope"] > 0.5, "a solver that sees R2' sees blood"
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "cells").iterdir())]
    assert len(before) == len(ROWS) * len(TEST)
    patients(config)
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "cells").iterdir())] == before


# ---- susceptibility maps -------------------------------------------------------------------------------


def test_susceptibility_maps_are_evaluated_without_their_mean(thesis, weights, tmp_path):
    config = QsmExperimentConfig(**options(thesis, out=tmp_path, weights_folder=weights, **LESIONS))
    written = qsm(config)
    assert [path.name for path in written] == ["qsm.md", "qsm.json", "qsm.png", "qsm-lesions.png"]
    found = json.loads(written[1].read_text())
    assert list(found["Rows"]) == ["tikhonov", "tv", "qsmnet"]
    assert len(found["Cells"]) == 3 * len(TEST)
    assert all("±" in line for line in written[0].read_text().splitlines()[6:9])

    case = load_case(thesis.root, "06")
    chi = invert(case.maps, "tv").chi_ppm.numpy()
    truth, inside = case.references["truth"].chi_ppm.numpy(), case.maps.mask.numpy()
    (cell,) = (c for c in found["Cells"] if c["row"] == "tv" and c["subject"] == "06")
    assert cell["truth"]["nrmse_percent"] == pytest.approx(
        nrmse_demeaned_percent(chi, truth, inside), rel=1e-4
    )
    assert cell["cosmos"]["nrmse_percent"] != pytest.approx(cell["truth"]["nrmse_percent"], rel=0.01)
    # A regularised inversion underestimates, and by its sign tells calcium from blood.
    for kind in GRADED:
        line = found["Rows"]["tv"]["lesions"][kind]
        assert line["lesions"] > 3
        assert 0.3 < line["slope"] < 1.2
    assert found["Rows"]["tv"]["lesions"]["calcification"]["lesions"] <= len(LESIONS["strengths_ppb"]) * 3


# ---- trainings -----------------------------------------------------------------------------------------


def test_networks_are_trained_in_turn_and_once(thesis, tmp_path):
    dataset = copied(thesis, tmp_path)
    few = {"epochs": 1, "steps_per_epoch": 4, "threads": 1, "dataset": dataset, "out": tmp_path / "networks"}
    config = NetworksConfig(**options(thesis, **few, only=("thesis-baseline", "qsmnet")))
    with pytest.raises(InputError, match="Train qsmnet first"):
        train_networks(replace(config, only=("thesis-baseline",)))
    with pytest.warns(ChisepWarning, match="qsmnet, thesis-baseline not done"):
        assert train_networks(replace(config, minutes=0.0)) == [config.out / "networks.json"]
    config = replace(config, only=("qsmnet",))
    calls: list[tuple[str, int, int]] = []
    written = train_networks(config, lambda *said: calls.append(said))
    assert ("training qsmnet", 0, 1) in calls
    assert [path.parent.name for path in written] == ["networks", "qsmnet"]
    chi = sorted((dataset / "derivatives" / "qsmnet").rglob("*_Chimap.nii.gz"))
    assert len(chi) == 6 * len(SUBJECTS)
    record = json.loads(written[0].read_text())
    assert set(record["Networks"]) == {"qsmnet"}
    assert record["Networks"]["qsmnet"]["metrics"]["validation_loss"] > 0
    before = [path.stat().st_mtime_ns for path in (*written[1:], *chi)]
    assert train_networks(config) == written
    assert [path.stat().st_mtime_ns for path in (*written[1:], *chi)] == before
    with pytest.raises(InputError, match="a training with other epochs"):
        train_networks(replace(config, epochs=2))


def test_runs_differ_from_their_base_in_one_thing(tmp_path):
    found = {run.name: run for run in runs(ThesisAblationsConfig(out=tmp_path))}
    assert len(found) == len(runs(ThesisAblationsConfig(out=tmp_path)))
    assert {f"unrolled-{n}" for n in (1, 2, 4, 6, 10, 14)} <= set(found)

    def flat(value: object, name: str = "") -> dict[str, object]:
        if not isinstance(value, dict):
            return {name: value}
        return {k: v for key, part in value.items() for k, v in flat(part, f"{name}.{key}").items()}

    for name, run in found.items():
        base = found["baseline" if name.startswith("baseline") else "unrolled-10"]
        one, other = flat(asdict(base.recipe)), flat(asdict(run.recipe))
        changed = {key for key in one if one[key] != other[key]}
        assert len(changed) == (run is not base and run.qsm == "qsmnet"), name
        for field in ("crops", "loss", "epochs", "steps_per_epoch", "batch_size"):
            assert getattr(run.recipe, field) == getattr(found["unrolled-10"].recipe, field), field
        assert run.recipe.optimiser == base.recipe.optimiser
    slow, fast = (found[name].recipe.optimiser for name in ("baseline", "unrolled-10"))
    assert fast == replace(slow, alpha_learning_rate=3 * slow.alpha_learning_rate)
    assert found["unrolled-10"].recipe.network.unrolled.alpha == 4
    assert found["unrolled-10-no-qsm"].recipe.network.unrolled.qsm_row is False
    assert found["baseline-no-qsm"].recipe.network.inputs == ("r2prime", "field")
    assert found["baseline-twice-width"].recipe.network.unet.widths == (16, 32, 64)
    assert {run.qsm for run in found.values()} == {"qsmnet", "tv", "true"}
    assert {run.recipe.seed for run in found.values()} == {0, 1}
    with pytest.raises(InputError, match="unrolled-11"):
        ThesisAblationsConfig(out=tmp_path, only=("unrolled-11",))


def test_ablations_are_trained_tested_and_kept(thesis, weights, tmp_path):
    dataset = copied(thesis, tmp_path)
    chosen = ("baseline", "unrolled-10-alpha-1", "baseline-no-qsm", "unrolled-2", "baseline-qsm-true")
    config = ThesisAblationsConfig(
        **options(thesis, **LESIONS, out=tmp_path / "ablations", dataset=dataset, weights_folder=weights),
        **{"widths": (2, 4), "crop": 8, "epochs": 1, "steps_per_epoch": 4, "validation_crops": 2},
        threads=1,
        only=chosen,
    )
    with pytest.warns(ChisepWarning, match="the time is up"):
        ablations(replace(config, minutes=0.0))
    written = ablations(config)
    assert [path.name for path in written] == [
        "ablations.md",
        "ablations.json",
        "ablations.png",
        "iterations.png",
        "alpha.png",
    ]
    found = json.loads(written[1].read_text())
    assert found["Budget"]["steps_per_epoch"] == 4
    assert {row["run"] for row in found["Rows"]} == set(chosen)
    by_name = {row["run"]: row for row in found["Rows"]}
    assert by_name["unrolled-2"]["iterations"] == 2
    assert by_name["baseline"]["alpha_end"] is None
    assert by_name["unrolled-10-alpha-1"]["alpha_end"] == pytest.approx(1, abs=0.5)
    assert set(found["Alpha"]) == {"unrolled-10-alpha-1", "unrolled-2"}
    assert by_name["baseline"]["slopes"]["hemorrhage"]["lesions"] >= 2
    page = written[0].read_text()
    assert page.count("baseline without χ_QSM") == 3
    assert "channels per level 2-4" in page
    linked = sorted((dataset / "derivatives" / "qsmtrue").rglob("*_Chimap.nii.gz"))
    assert len(linked) == 6 * len(TRAIN + VALIDATION)
    truth = bids.derivative_path(dataset / TRUTH, "01", "Chimap", desc="total")
    np.testing.assert_array_equal(nifti.load(linked[0]).data, nifti.load(truth).data)
    files = sorted((config.out / "runs").glob("*/*.[js]*"))
    before = [path.stat().st_mtime_ns for path in files]
    assert ablations(config) == written
    assert [path.stat().st_mtime_ns for path in files] == before
    with pytest.raises(InputError, match="a training with other"):
        ablations(replace(config, crop=16))


def test_chi_maps_of_tests_are_made_as_those_of_training(thesis, weights, tmp_path):
    where = folders(copied(thesis, tmp_path))
    make_qsm_maps(where, "qsmnet", weights)
    case = load_case(thesis.root, "04")
    made = nifti.load(acquisition_path(where, "qsm", "04", field_maps(where, "04")[0])).data
    np.testing.assert_allclose(chi_of(case, "qsmnet", weights).numpy(), made, atol=1e-7)
    truth = case.references["truth"].chi_ppm
    assert torch.equal(chi_of(case, "true", None), truth)
    clean = replace(case, maps=replace(case.maps, field_ppm=Dipole(case.maps.grid).apply(truth)))
    error = nrmse_percent(chi_of(clean, "tv", None).numpy(), truth.numpy(), case.maps.mask.numpy())
    assert error < 60
