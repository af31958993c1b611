"""Images whose place, unit, size or extent is not that of a usual head: right numbers, or a clear message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from chisep import cli
from chisep.errors import InputError
from chisep.io import bids, nifti
from chisep.pipeline.check import check_dataset
from chisep.pipeline.config import RunConfig
from chisep.pipeline.files import SessionFiles
from chisep.pipeline.run import discover
from tests.pipeline.stages import run_up_to

ANAT = Path("sub-01") / "anat"
Edit = Callable[[np.ndarray, np.ndarray], nib.Nifti1Image]


def affine(degrees: tuple[float, float, float], scale: tuple[float, float, float] = (1, 1, 1)) -> np.ndarray:
    moved = np.eye(4)
    moved[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag(scale)
    moved[:3, 3] = (3, -4, 5)
    return moved


MNI = affine((28, 0, 6), (1.12, 1.08, 1.15))
ALIGNED = affine((25, 3, 0))


def image_of(
    data: np.ndarray, sform: np.ndarray, sform_code: int, qform: np.ndarray | None, qform_code: int
) -> nib.Nifti1Image:
    image = nib.Nifti1Image(data, sform)
    image.set_qform(sform if qform is None else qform, qform_code)
    image.set_sform(sform, sform_code)
    return image


def edited(source: Path, root: Path, edit: Edit, *, keep_b0: bool = False) -> Path:
    """Copy a raw dataset with other images, and without the direction of B0 in its sidecars."""
    for path in sorted((source / ANAT).iterdir()):
        target = root / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            facts = json.loads(path.read_text())
            if not keep_b0:
                facts.pop("B0DirectionVoxelAxes", None)
            target.write_text(json.dumps(facts))
        else:
            image = nib.load(path)
            nib.save(edit(np.asarray(image.dataobj), image.affine), target)
    shutil.copy(source / bids.DESCRIPTION, root)
    return root


def processed(root: Path, out: Path, last: str = "qsm", **options) -> list[str]:
    """Run a session up to a stage; warnings on geometry, not on coarse voxels and the missing spin echo."""
    result = run_up_to(last, RunConfig(root, out, qsm="tkd", method="closed-form", **options))
    return [text for text in result.warnings if not text.startswith(("field: ", "relaxometry: "))]


@pytest.fixture(scope="module")
def masks(raw_gradient_echo) -> Path:
    """The true brain mask as a dataset of masks, which spares the extraction."""
    return raw_gradient_echo / "derivatives" / "truth"


@pytest.fixture(scope="module")
def usual(raw_gradient_echo, masks, tmp_path_factory) -> Path:
    """Maps of the scan as it is."""
    root = tmp_path_factory.mktemp("usual")
    assert not processed(raw_gradient_echo, root, masks=masks)
    return root


def read(out: Path, name: str) -> np.ndarray:
    return np.asarray(nib.load(out / ANAT / f"sub-01_{name}.nii.gz").dataobj, dtype=np.float64)


def require_same_maps(out: Path, usual: Path) -> None:
    """Local field within 1 %, QSM within 3 % of those of the scan as it is."""
    inside = read(usual, "desc-eroded_mask") > 0
    assert (read(out, "desc-eroded_mask") > 0).sum() == inside.sum()
    for name, limit in (("desc-local_fieldmap", 0.01), ("desc-qsm_Chimap", 0.03)):
        made, expected = read(out, name)[inside], read(usual, name)[inside]
        assert np.linalg.norm(made - expected) < limit * np.linalg.norm(expected)


class TestFrames:
    @pytest.mark.parametrize(("moved", "code"), [(MNI, 4), (MNI, 3), (ALIGNED, 2), (MNI, 5)])
    def test_the_scanners_qform_beside_another_sform(
        self, raw_gradient_echo, usual, masks, tmp_path, moved, code
    ):
        def edit(data, scanner):
            return image_of(data, moved @ scanner, code, scanner, 1)

        raw = edited(raw_gradient_echo, tmp_path / "raw", edit)
        (warning,) = processed(raw, tmp_path / "out", masks=masks)
        require_same_maps(tmp_path / "out", usual)
        assert "echo-1_part-mag_MEGRE.nii.gz" in warning
        assert f"sform of code {code}" in warning
        assert "qform of code 1" in warning

    def test_a_mask_that_was_written_with_the_sform_is_on_the_grid(
        self, raw_gradient_echo, usual, masks, tmp_path
    ):
        def edit(data, scanner):
            return image_of(data, MNI @ scanner, 4, scanner, 1)

        raw = edited(raw_gradient_echo, tmp_path / "raw", edit)
        name = ANAT / "sub-01_desc-brain_mask.nii.gz"
        mask = nib.load(masks / name)
        (tmp_path / "masks" / ANAT).mkdir(parents=True)
        other = nib.Nifti1Image(np.asarray(mask.dataobj), MNI @ mask.affine)
        nib.save(other, tmp_path / "masks" / name)
        processed(raw, tmp_path / "out", masks=tmp_path / "masks")
        require_same_maps(tmp_path / "out", usual)

    @pytest.mark.parametrize(
        ("edit", "words"),
        [
            (lambda data, scanner: image_of(data, scanner, 0, scanner, 0), "both of code 0"),
            (lambda data, scanner: image_of(data, MNI @ scanner, 4, None, 0), "code 4, MNI"),
            (lambda data, scanner: image_of(data, ALIGNED @ scanner, 2, scanner, 2), "aligned"),
            (lambda data, scanner: image_of(data, ALIGNED @ scanner, 4, ALIGNED @ scanner, 4), "MNI"),
        ],
        ids=["none", "MNI", "aligned apart", "MNI twice"],
    )
    def test_without_the_scanners_frame_b0_is_asked_for(
        self, raw_gradient_echo, usual, masks, tmp_path, edit, words
    ):
        raw = edited(raw_gradient_echo, tmp_path / "raw", edit)
        with pytest.raises(InputError, match="--b0-dir") as caught:
            processed(raw, tmp_path / "out")
        assert words in str(caught.value)
        (check,) = check_dataset(raw)
        assert any("--b0-dir" in problem for problem in check.problems)
        b0 = nifti.b0_direction_of(nib.load(next((raw_gradient_echo / ANAT).glob("*.nii.gz"))).affine)
        brain = read_mask(masks, raw, tmp_path)
        processed(raw, tmp_path / "out", b0_dir=b0, masks=brain)
        if words != "code 4, MNI":  # its voxels are of another size, too
            require_same_maps(tmp_path / "out", usual)
        made = nib.load(tmp_path / "out" / ANAT / "sub-01_desc-local_fieldmap.nii.gz")
        assert 1 not in (int(made.header["sform_code"]), int(made.header["qform_code"]))

    def test_b0_of_the_sidecar_suffices(self, raw_gradient_echo, usual, masks, tmp_path):
        def edit(data, scanner):
            return image_of(data, scanner, 0, scanner, 0)

        raw = edited(raw_gradient_echo, tmp_path / "raw", edit, keep_b0=True)
        assert not processed(raw, tmp_path / "out", masks=read_mask(masks, raw, tmp_path))
        require_same_maps(tmp_path / "out", usual)

    def test_the_code_that_nibabel_gives_by_itself_is_an_assumption(
        self, raw_gradient_echo, usual, masks, tmp_path
    ):
        raw = edited(raw_gradient_echo, tmp_path / "raw", nib.Nifti1Image)
        (warning,) = processed(raw, tmp_path / "out", masks=masks)
        require_same_maps(tmp_path / "out", usual)
        assert "B0 is taken to be along its z axis" in warning
        (check,) = check_dataset(raw)
        assert check.ok
        assert any("sform of code 2" in text for text in check.warnings)

    def test_import_refuses_what_tells_no_direction(self, tmp_path, capsys):
        data = np.ones((4, 4, 4, 2), np.float32)
        for name in ("mag", "phase"):
            nib.save(image_of(data, MNI, 4, None, 0), tmp_path / f"{name}.nii.gz")
        command = [
            *("import", str(tmp_path / "bids"), "--te", "0.006", "0.012", "--b0", "3"),
            *("--magnitude", str(tmp_path / "mag.nii.gz"), "--phase", str(tmp_path / "phase.nii.gz")),
        ]
        assert cli.main(command) == 1
        assert "--b0-dir" in capsys.readouterr().err
        assert cli.main([*command, "--b0-dir", "0", "0.6", "0.8"]) == 0
        sidecar = json.loads((tmp_path / "bids" / ANAT / "sub-01_echo-1_part-mag_MEGRE.json").read_text())
        assert sidecar["B0DirectionVoxelAxes"] == [0, 0.6, 0.8]

    def test_single_maps_ask_for_b0(self, tmp_path, capsys):
        data = np.zeros((40, 40, 40), np.float32)
        data[5:35, 5:35, 5:35] = np.random.default_rng(0).normal(0, 0.006, (30, 30, 30))
        nib.save(image_of(data, MNI, 4, None, 0), tmp_path / "field.nii.gz")
        nib.save(image_of((data != 0).astype(np.uint8), MNI, 4, None, 0), tmp_path / "mask.nii.gz")
        command = [
            *("qsm", "--field", str(tmp_path / "field.nii.gz"), "--mask", str(tmp_path / "mask.nii.gz")),
            *("--method", "tkd", "--out", str(tmp_path / "chi.nii.gz")),
        ]
        assert cli.main(command) == 1
        assert "--b0-dir" in capsys.readouterr().err
        assert cli.main([*command, "--b0-dir", "0", "0", "1"]) == 0
        assert int(nib.load(tmp_path / "chi.nii.gz").header["sform_code"]) == 4


def read_mask(masks: Path, raw: Path, tmp_path: Path) -> Path:
    """The true mask in the frame of a raw dataset."""
    name = ANAT / "sub-01_desc-brain_mask.nii.gz"
    first = next((raw / ANAT).glob("*.nii.gz"))
    place = nifti.read_header(first).place
    data = np.asarray(nib.load(masks / name).dataobj)
    (tmp_path / "framed" / ANAT).mkdir(parents=True, exist_ok=True)
    nifti.save(tmp_path / "framed" / name, data, place.affine, dtype=np.uint8, code=place.code)
    return tmp_path / "framed"


class TestUnits:
    @pytest.mark.parametrize(("unit", "factor"), [("micron", 1000.0), ("meter", 0.001)])
    def test_the_headers_unit_is_read(self, raw_gradient_echo, usual, masks, tmp_path, unit, factor):
        def edit(data, scanner):
            other = scanner.copy()
            other[:3] *= factor
            image = image_of(data, other, 1, other, 1)
            image.header.set_xyzt_units(unit, "sec")
            return image

        raw = edited(raw_gradient_echo, tmp_path / "raw", edit)
        assert not processed(raw, tmp_path / "out", masks=masks)
        require_same_maps(tmp_path / "out", usual)

    def test_a_unit_that_cannot_be_is_not_believed(self, raw_gradient_echo, usual, masks, tmp_path):
        def edit(data, scanner):
            image = image_of(data, scanner, 1, scanner, 1)
            image.header.set_xyzt_units("micron", "sec")
            return image

        raw = edited(raw_gradient_echo, tmp_path / "raw", edit)
        (warning,) = processed(raw, tmp_path / "out", masks=masks)
        assert "states micrometres" in warning
        require_same_maps(tmp_path / "out", usual)

    def test_no_unit_is_mm(self, raw_gradient_echo, masks, tmp_path):
        def edit(data, scanner):
            image = image_of(data, scanner, 1, scanner, 1)
            image.header["xyzt_units"] = 0
            return image

        raw = edited(raw_gradient_echo, tmp_path / "raw", edit)
        (one,) = discover(RunConfig(raw, tmp_path / "out"))
        files = SessionFiles(one.session, raw, tmp_path / "out", "cpu")
        assert files.grid.voxel_mm == pytest.approx((6.0, 6.0, 6.0))


def cropped(first: int, count: int) -> Edit:
    def edit(data, scanner):
        moved = scanner.copy()
        moved[:3, 3] += scanner[:3, 2] * first
        return image_of(data[:, :, first : first + count], moved, 1, moved, 1)

    return edit


class TestExtent:
    @pytest.mark.parametrize(("count", "words"), [(1, "1 slice "), (2, "2 slices ")])
    def test_single_slices_are_refused_by_name(self, raw_gradient_echo, tmp_path, count, words):
        raw = edited(raw_gradient_echo, tmp_path / "raw", cropped(16, count))
        with pytest.raises(InputError, match=f"{words}along the third axis") as caught:
            processed(raw, tmp_path / "out", "mask")
        assert "Give all slices" in str(caught.value)
        (check,) = check_dataset(raw)
        assert any(words in problem for problem in check.problems)

    def test_a_thin_slab_is_warned_of(self, raw_gradient_echo, masks, tmp_path):
        raw = edited(raw_gradient_echo, tmp_path / "raw", cropped(14, 4))
        name = ANAT / "sub-01_desc-brain_mask.nii.gz"
        mask = nib.load(masks / name)
        (tmp_path / "masks" / ANAT).mkdir(parents=True)
        nib.save(cropped(14, 4)(np.asarray(mask.dataobj), mask.affine), tmp_path / "masks" / name)
        warnings = processed(raw, tmp_path / "out", "background", masks=tmp_path / "masks")
        (warning,) = [text for text in warnings if "slices" in text]
        assert "24 mm along the third axis (4 slices)" in warning

    def test_a_mask_of_two_slices_is_refused(self, raw_gradient_echo, masks, tmp_path):
        name = ANAT / "sub-01_desc-brain_mask.nii.gz"
        mask = nib.load(masks / name)
        data = np.asarray(mask.dataobj).copy()
        data[:, :, :15], data[:, :, 17:] = 0, 0
        (tmp_path / "masks" / ANAT).mkdir(parents=True)
        nib.save(image_of(data, mask.affine, 1, mask.affine, 1), tmp_path / "masks" / name)
        with pytest.raises(InputError, match="2 slices along the third axis"):
            processed(raw_gradient_echo, tmp_path / "out", "background", masks=tmp_path / "masks")


class TestSpinEcho:
    """A spin echo and a gradient echo of which one has another frame."""

    def edited(self, source: Path, root: Path, edit: Edit, suffix: str) -> Path:
        def keep(data, scanner):
            return image_of(data, scanner, 1, scanner, 1)

        edited(source, root, keep)
        for path in (root / ANAT).glob(f"*_{suffix}.nii.gz"):
            image = nib.load(path)
            nib.save(edit(np.asarray(image.dataobj), image.affine), path)
        return root

    def masks(self, raw: Path) -> Path:
        return raw / "derivatives" / "truth"

    @pytest.mark.parametrize(("moved", "code"), [(MNI, 4), (ALIGNED, 2)])
    def test_another_sform_of_the_gradient_echo_moves_nothing(self, raw_session, tmp_path, moved, code):
        def edit(data, scanner):
            return image_of(data, moved @ scanner, code, scanner, 1)

        raw = self.edited(raw_session, tmp_path / "raw", edit, "MEGRE")
        found = {}
        for name, root in (("usual", raw_session), ("moved", raw)):
            processed(root, tmp_path / name, "registration", masks=self.masks(raw_session))
            found[name] = json.loads(
                (tmp_path / name / ANAT / "sub-01_from-MEGRE_to-MESE_xfm.json").read_text()
            )
        assert found["moved"]["MovedMm"] == pytest.approx(found["usual"]["MovedMm"], abs=0.05)
        assert found["moved"]["Agreement"] == pytest.approx(found["usual"]["Agreement"], abs=0.01)

    def test_a_spin_echo_that_lies_elsewhere_is_refused(self, raw_session, tmp_path):
        def edit(data, scanner):
            return image_of(data, MNI @ scanner, 1, MNI @ scanner, 1)

        raw = self.edited(raw_session, tmp_path / "raw", edit, "MESE")
        with pytest.raises(InputError, match="does not lie on the gradient echo") as caught:
            processed(raw, tmp_path / "out", "registration", masks=self.masks(raw_session))
        assert "echo-1_MESE.nii.gz" in str(caught.value)
        assert "remove the spin echo" in str(caught.value)


@pytest.mark.parametrize("scale", [0.1, 0.2])
def test_a_small_animal_gets_its_own_lengths(raw_gradient_echo, tmp_path, scale):
    """All edges a tenth as long: the same maps, mask included, with lengths a tenth as long."""

    def edit(data, scanner):
        small = scanner.copy()
        small[:3] *= scale
        return image_of(data, small, 1, small, 1)

    processed(raw_gradient_echo, tmp_path / "human")
    raw = edited(raw_gradient_echo, tmp_path / "raw", edit)
    warnings = processed(raw, tmp_path / "small")
    require_same_maps(tmp_path / "small", tmp_path / "human")
    (warning,) = [text for text in warnings if "times as long" in text]
    assert f"about {scale:g} times" in warning
    facts = json.loads((tmp_path / "small" / ANAT / "sub-01_desc-brain_mask.json").read_text())
    assert facts["HeadLengthScale"] == scale
    erosion = [
        json.loads((tmp_path / name / ANAT / "sub-01_desc-eroded_mask.json").read_text())["ErosionMm"]
        for name in ("small", "human")
    ]
    assert erosion[0] == pytest.approx(scale * erosion[1], rel=0.02)
