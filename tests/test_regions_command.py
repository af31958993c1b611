"""The command `regions`: values of maps that were made elsewhere."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from chisep import cli
from chisep.api.regions import RegionsConfig, eroded, regions
from chisep.errors import ChisepWarning, InputError
from chisep.io import nifti

SHAPE, EDGE = (12, 14, 10), 2.0


def save(path: Path, volume: np.ndarray, edge: float = EDGE) -> Path:
    return nifti.save(path, volume, np.diag([edge, edge, edge, 1.0]))


@pytest.fixture
def files(tmp_path):
    """A cube (12: left putamen) of value 50 in surroundings of 10, and CSF (4) of value 4."""
    labels = np.zeros(SHAPE, dtype=np.int32)
    labels[3:8, 3:8, 3:8], labels[8:11, 9:13, 2:6] = 12, 4
    volume = np.full(SHAPE, 10.0, dtype=np.float32)
    volume[4:7, 4:7, 4:7], volume[labels == 4] = 50.0, 4.0
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[1:-1, 1:-1, 1:-1] = 1
    return {
        "labels": save(tmp_path / "dseg.nii.gz", labels),
        "chi": save(tmp_path / "chi.nii.gz", volume),
        "sigma": save(tmp_path / "sigma.nii.gz", np.full(SHAPE, 3.0, dtype=np.float32)),
        "mask": save(tmp_path / "mask.nii.gz", mask),
        "out": tmp_path / "new" / "regions.tsv",
    }


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row["name"]: row for row in csv.DictReader(file, delimiter="\t")}


def call(files, *more: str) -> int:
    return cli.main(
        [
            *("regions", "--map", f"chi_ppb={files['chi']}", "--mask", str(files["mask"])),
            *("--labels", str(files["labels"]), "--out", str(files["out"]), *more),
        ]
    )


def test_values_of_a_map(files):
    assert call(files, "--sigma", f"chi_ppb={files['sigma']}") == 0
    row = rows(files["out"])["Left-Putamen"]
    assert row["map"] == "chi_ppb"
    assert int(row["voxels"]) == 125
    assert float(row["mean"]) == pytest.approx((27 * 50 + 98 * 10) / 125, rel=1e-5)
    assert float(row["sigma"]) == 3
    assert float(row["coverage"]) == float(row["reliable_part"]) == 1
    # The mask begins at voxel 1: voxels 3 and 4 of every axis are deeper than 4 mm, as are those up to 7.
    assert float(row["rim_part"]) == pytest.approx(0.2, abs=0.2)
    assert files["out"].with_suffix(".json").is_file()


def test_erosion_takes_the_surface(files):
    assert call(files, "--erode", "1") == 0
    row = rows(files["out"])["Left-Putamen"]
    assert (int(row["voxels"]), float(row["mean"])) == (27, 50.0)


def test_erosion_of_touching_regions():
    labels = np.zeros((9, 5, 5), dtype=np.int32)
    labels[1:4, 1:4, 1:4], labels[4:8, 1:4, 1:4] = 1, 2
    assert np.argwhere(eroded(labels, 1) == 1).tolist() == [[2, 2, 2]]
    assert np.array_equal(eroded(labels, 0), labels)


def test_a_region_that_is_eroded_away_is_named(files):
    with pytest.warns(ChisepWarning, match="Left-Lateral-Ventricle"):
        made = regions(
            RegionsConfig(
                map=(f"x={files['chi']}",),
                mask=files["mask"],
                labels=files["labels"],
                out=files["out"],
                erode=2,
            )
        )
    assert set(rows(made[0])) == {"Left-Putamen"}


@pytest.mark.parametrize(("reference", "less"), [("csf", 4.0), ("MASK", 10.0)])
def test_a_reference_is_subtracted(files, reference, less, tmp_path):
    if reference == "MASK":
        region = np.zeros(SHAPE, dtype=np.uint8)
        region[1, 1:-1, 1:-1] = 1
        reference = str(save(tmp_path / "region.nii.gz", region))
    labels = nifti.load(files["labels"]).data
    labels[6:11, 8:13, 1:8] = 4
    volume = nifti.load(files["chi"]).data
    volume[labels == 4] = 4.0
    save(files["labels"], labels.astype(np.int32))
    save(files["chi"], volume)
    assert call(files, "--reference", reference, "--erode", "1") == 0
    assert float(rows(files["out"])["Left-Lateral-Ventricle"]["mean"]) == pytest.approx(4 - less)


def test_partial_volumes_of_a_finer_segmentation(files, tmp_path):
    """Half of each outer voxel belongs to the region; those at its upper end have the value of around it."""
    fine = np.zeros([4 * n for n in SHAPE], dtype=np.int32)
    fine[14:26, 16:28, 16:28] = 12
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] = -0.75
    files["labels"] = nifti.save(tmp_path / "fine.nii.gz", fine, affine)
    means = []
    for options in ([], ["--partial-volume"], ["--least-part", "0.9"]):
        assert call(files, *options) == 0
        means.append(float(rows(files["out"])["Left-Putamen"]["mean"]))
    assert 10 < means[0] < means[1] < means[2]
    assert means[2] == pytest.approx(50)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"map": ()}, "--map"),
        ({"map": ("chi.nii.gz",)}, "NAME=FILE"),
        ({"sigma": ("other=x",)}, "x"),
        ({"labels": None}, "--chi"),
        ({"erode": -1}, "--erode"),
        ({"least_part": 2.0}, "--least-part"),
        ({"partial_volume": True}, "finer"),
        ({"referenced": ("other",)}, "other"),
        ({"out": Path("regions.csv")}, r"\.tsv"),
    ],
)
def test_wrong_calls(files, change, said):
    options = {"map": (f"a={files['chi']}",), "mask": files["mask"], "labels": files["labels"]}
    with pytest.raises(InputError, match=said):
        regions(RegionsConfig(**options | {"out": files["out"]} | change))
    assert not files["out"].exists()
