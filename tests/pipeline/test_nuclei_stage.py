"""The stage `nuclei` in a session: outlines, names, rows of the table and the report."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK

from chisep.io import nifti
from chisep.pipeline.config import RunConfig
from chisep.pipeline.run import run
from chisep.pipeline.stages import nuclei, regions
from chisep.preprocessing.mask import MaskConfig
from chisep.regions.atlas import AtlasRegistration
from chisep.regions.cit168 import FIRST_LABEL, nucleus_names
from chisep.regions.labels import read_names
from chisep.regions.nuclei import NucleiConfig
from chisep.regions.statistics import read_values

ANAT = Path("sub-01", "anat")


def quick(raw: Path, out: Path, **options) -> RunConfig:
    mask = MaskConfig(method="threshold")
    return RunConfig(raw, out, method="closed-form", qsm="tkd", mask=mask, **options)


@pytest.fixture
def registered(monkeypatch):
    """A scan whose registration is known: it has its own tests. Voxels of 6 mm count as fine enough."""
    monkeypatch.setattr(nuclei, "COARSEST_MM", 6.0)

    def whole(*_maps_and_grid):
        return AtlasRegistration(0.95, SimpleITK.AffineTransform(3))

    def outlined(r2star_hz, chi_ppm, brain, chi_known, grid, to_mni, config):
        assert r2star_hz.shape == chi_ppm.shape == chi_known.shape == grid.shape
        assert chi_known[brain & (chi_ppm != 0)].all()  # also outside the reliable mask
        assert to_mni.GetDimension() == 3
        assert config == NucleiConfig()
        labels = np.zeros(grid.shape, dtype=np.int32)
        middle = tuple(int(i) for i in np.argwhere(brain).mean(0))
        labels[middle], labels[middle[0] + 1, middle[1], middle[2]] = FIRST_LABEL + 9, FIRST_LABEL + 16
        return labels

    monkeypatch.setattr(regions, "registration", whole)
    monkeypatch.setattr(nuclei, "nuclei_on_scan", outlined)


def test_the_stages_of_a_run_register_the_atlas_once(monkeypatch):
    made = []

    def whole(r2star, *_maps_and_grid):
        made.append(r2star is not None)
        return AtlasRegistration(0.95, SimpleITK.AffineTransform(3))

    monkeypatch.setattr(regions, "registration", whole)
    context = SimpleNamespace(registrations={}, chi_key="chi")
    files = SimpleNamespace(array=lambda _key: np.ones((2, 2, 2)), grid=None)
    for with_r2star in (True, True, False):
        assert regions.registered_atlas(context, files, with_r2star=with_r2star).overlap == 0.95
    assert made == [True, False]


def test_nuclei_of_a_session(raw_gradient_echo, tmp_path, registered):
    out = tmp_path / "out"
    (result,) = run(quick(raw_gradient_echo, out))
    assert result.error is None, result.error
    image = out / ANAT / "sub-01_desc-nuclei_dseg.nii.gz"
    labels = np.rint(nifti.load(image).data)
    names = read_names(image.with_suffix("").with_suffix(".tsv"))
    assert set(np.unique(labels[labels > 0]).astype(int)) == set(names) == {21009, 21016}
    assert names.items() <= nucleus_names().items()
    values = {(one.index, one.map): one for one in read_values(out / ANAT / "sub-01_regions.tsv")}
    for index, name in names.items():
        one = values[index, "r2star_hz"]
        assert one.name == name
        assert (one.voxels, one.coverage, one.rim_part) == (1, 1.0, 0.0)
    assert "left globus pallidus externus" in (out / "sub-01.html").read_text()
    (without,) = run(quick(raw_gradient_echo, out, nuclei=False))
    assert "nuclei" not in without.skipped
    rows = read_values(out / ANAT / "sub-01_regions.tsv")
    assert not any(one.index in names for one in rows)
