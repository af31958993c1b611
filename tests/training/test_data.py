"""Reading labelled maps, and crops that keep the physics."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from chisep.errors import InputError
from chisep.io import nifti
from chisep.networks.config import PHI_ROWS, SOURCES, NetworkConfig
from chisep.physics.dipole import Dipole
from chisep.training.data import (
    BatchSampler,
    CropConfig,
    Crops,
    FoldersConfig,
    TrainingScan,
    load_scans,
    mirrored,
    statistics,
)
from chisep.types import Grid

NETWORK = NetworkConfig(PHI_ROWS, SOURCES)
SIZE = 12


def scan_of(shape, b0, *, noise: float = 0.0, seed: int = 0) -> TrainingScan:
    """Random sources in an ellipsoid, and their field to the last digit."""
    generator = torch.Generator().manual_seed(seed)
    axes = [torch.linspace(-1, 1, n) for n in shape]
    mask = torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0) <= 1.0
    pos, neg = 0.05 * torch.rand(2, *shape, generator=generator) * mask
    grid = Grid(shape, (1.0, 1.0, 1.5), b0)
    field = Dipole(grid).apply(pos - neg)
    error = noise * torch.randn(shape, generator=generator)
    channels = {
        "qsm": (pos - neg) * 0.8,
        "r2prime": pos + neg,
        "field": (field + error) * mask,
        "chi_pos": pos,
        "chi_neg": neg,
    }
    return TrainingScan(f"scan{seed}", grid, mask, channels, field)


SCANS = [
    scan_of((20, 24, 18), (0.0, 0.0, 1.0)),
    scan_of((22, 20, 19), (0.1, 0.6, 0.7), seed=1),
]
SMALL = scan_of((9, 20, 11), (0.0, 0.6, 0.8), seed=2)


def crops(scans=SCANS, seed=3, count=40, **options) -> Crops:
    return Crops(scans, NETWORK, CropConfig(**{"size": SIZE, **options}), count, seed)


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def field_of(example) -> torch.Tensor:
    """Field that the sources of a crop make in it, 0 outside the brain."""
    pos, neg = example.targets
    grid = Grid(tuple(pos.shape), tuple(example.voxel_mm.tolist()), tuple(example.b0_direction.tolist()))
    return Dipole(grid).apply(pos - neg) * example.mask[0]


class TestCrops:
    def test_crop_n_is_the_same_whenever_it_is_asked_for(self):
        one, other = crops(), crops()
        backwards = [other[n] for n in reversed(range(10))]
        assert all(same(one[n], example) for n, example in enumerate(reversed(backwards)))
        assert same(one[4], one[4])

    def test_numbers_and_seeds_make_different_crops(self):
        one, other = crops(), crops(seed=4)
        assert not any(same(one[n], one[n + 1]) for n in range(20))
        assert not any(same(one[n], other[n]) for n in range(20))

    def test_the_count_changes_no_crop(self):
        assert same(crops(count=5)[4], crops(count=500)[4])

    @pytest.mark.parametrize("number", [-1, 40])
    def test_there_are_no_others(self, number):
        assert len(crops()) == 40
        with pytest.raises(IndexError):
            crops()[number]

    def test_crops_are_parts_of_the_maps(self):
        """All channels are of one place of one scan."""
        found = crops(flip=False, outside_field="keep")
        for example in (found[n] for n in range(10)):
            assert example.inputs.shape == (3, SIZE, SIZE, SIZE)
            assert example.targets.shape == (2, SIZE, SIZE, SIZE)
            (scan,) = [s for s in SCANS if torch.tensor(s.grid.b0_direction).equal(example.b0_direction)]
            windows = scan.channels["chi_pos"].unfold(0, SIZE, 1).unfold(1, SIZE, 1).unfold(2, SIZE, 1)
            matches = (windows == example.targets[0]).flatten(3).all(3).nonzero()
            assert len(matches) == 1
            box = tuple(slice(start, start + SIZE) for start in matches[0].tolist())
            for channel, volume in zip(
                (*PHI_ROWS, *SOURCES), (*example.inputs, *example.targets), strict=True
            ):
                assert torch.equal(volume, scan.channels[channel][box])
            assert torch.equal(example.mask[0], scan.mask[box])

    def test_all_scans_are_seen_and_every_crop_has_brain(self):
        found = crops(count=300, flip=False, outside_field="keep")
        examples = [found[n] for n in range(300)]
        assert all(example.mask.any() for example in examples)
        assert 100 < sum(bool(example.b0_direction[2] == 1) for example in examples) < 200

    def test_changing_a_crop_leaves_the_scan_alone(self):
        found = crops(flip=False, outside_field="keep")
        before = found[0].inputs.clone()
        found[0].inputs.zero_()
        assert torch.equal(found[0].inputs, before)

    def test_workers_cut_the_same_crops(self):
        def batches(workers):
            sampler = BatchSampler(lambda: 0, 3, 2)
            return list(DataLoader(crops(), batch_sampler=sampler, num_workers=workers))

        for one, other in zip(batches(0), batches(1), strict=True):
            assert same(one, other)

    def test_too_small_is_refused(self):
        with pytest.raises(InputError, match="Typical is 48"):
            CropConfig(size=7)


class TestOutsideField:
    @pytest.mark.parametrize("flip", [False, True])
    def test_what_is_left_is_the_field_of_the_crops_own_sources(self, flip):
        """The key of training on crops: without noise a crop's field is the dipole's of its own label."""
        found = crops([*SCANS, SMALL], flip=flip, count=60)
        for number in range(30):
            example = found[number]
            torch.testing.assert_close(example.inputs[2], field_of(example), rtol=0, atol=1e-6)

    def test_kept_it_is_not(self):
        found = crops(outside_field="keep")
        errors = [found[n].inputs[2] - field_of(found[n]) for n in range(10)]
        assert min(float(error.abs().max()) for error in errors) > 1e-3

    def test_noise_stays_in(self):
        clean, noisy = (
            crops([scan_of((20, 24, 18), (0.0, 0.0, 1.0), noise=n)], flip=False) for n in (0.0, 0.01)
        )
        kept = crops([scan_of((20, 24, 18), (0.0, 0.0, 1.0), noise=0.01)], flip=False, outside_field="keep")
        plain = crops(SCANS[:1], flip=False, outside_field="keep")
        for n in range(5):
            noise = kept[n].inputs[2] - plain[n].inputs[2]
            assert noise.std() > 1e-3
            torch.testing.assert_close(noisy[n].inputs[2] - clean[n].inputs[2], noise, rtol=0, atol=1e-6)

    def test_other_channels_and_labels_are_as_they_were(self):
        for n in range(5):
            one, other = crops()[n], crops(outside_field="keep")[n]
            assert torch.equal(one.inputs[:2], other.inputs[:2])
            assert torch.equal(one.targets, other.targets)

    def test_volumes_smaller_than_a_crop_are_filled_with_zeros(self):
        example = crops([SMALL], flip=False)[0]
        assert example.inputs.shape == (3, SIZE, SIZE, SIZE)
        assert not example.mask[:, 9:].any()
        assert not example.mask[..., 11:].any()
        assert not (example.inputs * ~example.mask).any()
        whole = crops([SMALL], flip=False, size=24, outside_field="keep")[0]
        for channel, volume in zip(PHI_ROWS, whole.inputs, strict=True):
            assert torch.equal(volume[:9, :20, :11], SMALL.channels[channel])


class TestMirroring:
    @pytest.mark.parametrize("axes", [(True, False, False), (False, True, True), (True, True, True)])
    def test_keeps_the_physics(self, axes):
        """The dipole with the mirrored B0 makes the mirrored field of mirrored sources."""
        example = crops(flip=False)[1]
        turned = mirrored(example, axes)
        assert torch.equal(turned.inputs, example.inputs.flip([a - 3 for a in range(3) if axes[a]]))
        torch.testing.assert_close(turned.inputs[2], field_of(turned), rtol=0, atol=1e-6)

    def test_without_b0_it_would_not(self):
        example = next(e for e in (crops(SCANS[1:], flip=False)[n] for n in range(40)) if e.mask.any())
        wrong = mirrored(example, (False, True, False))._replace(b0_direction=example.b0_direction)
        assert (wrong.inputs[2] - field_of(wrong)).abs().max() > 1e-3

    def test_twice_is_nothing(self):
        example = crops()[0]
        assert same(mirrored(mirrored(example, (True, False, True)), (True, False, True)), example)

    def test_half_of_the_crops_are_mirrored_along_each_axis(self):
        scan = SCANS[1]
        found = crops([scan], count=200)
        signs = torch.stack([found[n].b0_direction.sign() for n in range(200)])
        assert (signs.mean(0).abs() < 0.25).all()
        assert len(signs.unique(dim=0)) == 8


def test_dipole_of_a_batch_is_that_of_each_example():
    examples = [crops()[n] for n in range(4)]
    batch = next(iter(DataLoader(examples, batch_size=4)))
    chi = batch.targets[:, 0] - batch.targets[:, 1]
    fields = batch.dipole().apply(chi) * batch.mask.squeeze(1)
    torch.testing.assert_close(fields, torch.stack([field_of(e) for e in examples]), rtol=1e-5, atol=1e-7)


class TestBatchSampler:
    def test_counts_up(self):
        assert list(BatchSampler(lambda: 0, 3, 2)) == [[0, 1], [2, 3], [4, 5]]
        assert len(BatchSampler(lambda: 0, 3, 2)) == 3

    def test_every_pass_starts_at_the_given_batch(self):
        state = {"step": 5}
        sampler = BatchSampler(lambda: state["step"], 2, 3)
        assert list(sampler) == [[15, 16, 17], [18, 19, 20]]
        state["step"] = 7
        assert list(sampler) == [[21, 22, 23], [24, 25, 26]]

    @pytest.mark.parametrize("world", [1, 2, 3, 6])
    def test_processes_share_each_batch(self, world):
        whole = list(BatchSampler(lambda: 4, 5, 6))
        parts = [list(BatchSampler(lambda: 4, 5, 6, rank, world)) for rank in range(world)]
        for number, batch in enumerate(whole):
            shares = [part[number] for part in parts]
            assert all(len(share) == 6 // world for share in shares)
            assert sorted(n for share in shares for n in share) == batch

    def test_batches_must_be_divisible(self):
        with pytest.raises(InputError, match="3 on 2 devices"):
            BatchSampler(lambda: 0, 1, 3, 0, 2)


class TestLoading:
    def test_one_scan_per_orientation(self, folders):
        calls = []
        scans = load_scans(folders, ("01", "02"), NETWORK, progress=lambda *what: calls.append(what))
        assert [s.name for s in scans] == [f"sub-0{s}_acq-ori{o}" for s in (1, 2) for o in (1, 2, 3)]
        assert len({s.grid.b0_direction for s in scans[:3]}) == 3
        assert calls[0] == ("sub-01_acq-ori1", 0, 6)
        assert calls[-1] == ("scans", 6, 6)
        for scan in scans:
            assert set(scan.channels) == {*PHI_ROWS, *SOURCES}
            assert scan.grid.shape == scan.mask.shape
            assert all(not volume[~scan.mask].any() for volume in scan.channels.values())
            for axis in range(3):
                # The box is tight: both faces of each axis touch the brain.
                assert scan.mask.movedim(axis, 0)[[0, -1]].flatten(1).any(1).all()

    def test_channels_are_in_ppm(self, folders):
        """R2' and R2* are divided by D_r, 114 1/s/ppm at 3 T; field and sources are as in the files."""
        network = NetworkConfig(("r2star", "r2prime", "field"), SOURCES)
        scan = load_scans(folders, ("01",), network)[0]
        anat = folders.folder("maps") / "sub-01" / "anat"
        mask = nifti.load(folders.folder("masks") / "sub-01/anat/sub-01_desc-brain_mask.nii.gz").data > 0
        for channel, name, unit in (
            ("r2star", "R2starmap", 114.0),
            ("r2prime", "R2primemap", 114.0),
            ("field", "desc-local_fieldmap", 1.0),
        ):
            values = nifti.load(anat / f"sub-01_acq-ori1_{name}.nii.gz").data[mask] / unit
            assert scan.channels[channel].sum().item() == pytest.approx(values.sum(), rel=1e-4)
            assert scan.channels[channel].abs().max().item() == pytest.approx(np.abs(values).max(), rel=1e-5)

    def test_label_explains_the_field(self, folders):
        """Signs, units and B0 directions of label and field agree in every orientation."""
        for scan in load_scans(folders, ("01",), NETWORK):
            field, mask = scan.channels["field"], scan.mask
            error = (scan.field_of_label - field)[mask].norm() / field[mask].norm()
            assert error < 0.4, scan.name
            chi = scan.channels["chi_pos"] - scan.channels["chi_neg"]
            wrong = Dipole(replace(scan.grid, b0_direction=(1.0, 0.0, 0.0))).apply(chi)
            assert (wrong - field)[mask].norm() / field[mask].norm() > 1

    def test_tilted_scans_are_turned_upright_for_networks_that_know_no_other(self, folders):
        """The turned label explains the turned field, whose B0 is along z."""
        for scan in load_scans(folders, ("01",), replace(NETWORK, b0_along_z=True)):
            assert abs(scan.grid.b0_direction[2]) > 0.999
            field, mask = scan.channels["field"], scan.mask
            assert not field[~mask].any()
            error = (scan.field_of_label - field)[mask].norm() / field[mask].norm()
            # Turning voxels of 5 mm costs more than it does in a real scan.
            assert error < 0.55, scan.name

    def test_field_of_the_label_only_where_it_is_asked_for(self, folders):
        assert load_scans(folders, ("02",), NETWORK, field_of_label=False)[0].field_of_label is None
        rates = NetworkConfig(("r2star",), ("r2prime",))
        scan = load_scans(folders, ("02",), rates)[0]
        assert scan.field_of_label is None
        assert set(scan.channels) == {"r2star", "r2prime"}

    def test_a_network_for_chi_gets_the_sources_for_its_crops(self, folders):
        network = NetworkConfig(("field",), ("chi",))
        scan = load_scans(folders, ("02",), network)[0]
        assert scan.field_of_label is not None
        example = Crops([scan], network, CropConfig(size=16), 3, 0)[0]
        assert example.inputs.shape == example.targets.shape == (1, 16, 16, 16)

    def test_statistics_are_those_of_all_brain_voxels(self, folders):
        scans = load_scans(folders, ("01", "02"), NETWORK)
        found = statistics(scans)
        for channel in (*PHI_ROWS, *SOURCES):
            values = torch.cat([scan.channels[channel][scan.mask] for scan in scans]).numpy().astype(float)
            assert found[channel] == pytest.approx((values.mean(), values.std()), rel=1e-6)

    def test_a_subject_without_maps_is_named(self, folders):
        with pytest.raises(InputError, match=r"sub-07.*no local field"):
            load_scans(folders, ("07",), NETWORK)


@pytest.fixture
def copied(folders, tmp_path) -> FoldersConfig:
    """A dataset of its own, of one subject, to break."""
    for folder in ("maps", "labels", "truth", "qsm"):
        part = f"derivatives/{folder}/sub-02"
        shutil.copytree(folders.dataset / part, tmp_path / part)
    return replace(folders, dataset=tmp_path, train=("02",))


def test_r2prime_of_the_first_scan_serves_those_without(copied):
    first, second, _ = load_scans(copied, ("02",), NETWORK)
    assert torch.equal(second.channels["r2prime"], first.channels["r2prime"])
    assert not torch.equal(second.channels["field"], first.channels["field"])
    path = copied.folder("maps") / "sub-02/anat/sub-02_acq-ori1_R2primemap.nii.gz"
    image = nifti.load(path)
    nifti.save(path.with_name(path.name.replace("ori1", "ori2")), 2 * image.data, image.affine)
    first, second, third = load_scans(copied, ("02",), NETWORK)
    assert torch.equal(second.channels["r2prime"], 2 * first.channels["r2prime"])
    assert torch.equal(third.channels["r2prime"], first.channels["r2prime"])


class TestBrokenData:
    @pytest.mark.parametrize(
        "name",
        [
            "maps/sub-02/anat/sub-02_acq-ori1_R2primemap.nii.gz",
            "qsm/sub-02/anat/sub-02_acq-ori3_Chimap.nii.gz",
            "labels/sub-02/anat/sub-02_desc-diamagnetic_Chimap.nii.gz",
            "truth/sub-02/anat/sub-02_desc-brain_mask.nii.gz",
        ],
    )
    @pytest.mark.parametrize("fault", ["missing", "truncated", "other shape", "other place"])
    def test_the_file_is_named(self, copied, name, fault):
        path = copied.dataset / "derivatives" / name
        image = nifti.load(path)
        if fault == "missing":
            path.unlink()
        elif fault == "truncated":
            path.write_bytes(path.read_bytes()[:-100])
        elif fault == "other shape":
            nifti.save(path, image.data[:-1], image.affine)
        else:
            shift = np.zeros((4, 4))
            shift[0, 3] = 1.0
            nifti.save(path, image.data, image.affine + shift)
        with pytest.raises(InputError) as raised:
            load_scans(copied, ("02",), NETWORK)
        assert path.name in str(raised.value)

    def test_a_sidecar_that_states_another_field_strength_changes_the_unit(self, copied):
        before = load_scans(copied, ("02",), NETWORK)[0]
        sidecar = copied.folder("maps") / "sub-02/anat/sub-02_acq-ori1_desc-local_fieldmap.json"
        facts = json.loads(sidecar.read_text())
        sidecar.write_text(json.dumps(facts | {"MagneticFieldStrength": 7.0}))
        after = load_scans(copied, ("02",), NETWORK)[0]
        torch.testing.assert_close(after.channels["r2prime"], before.channels["r2prime"] * 3 / 7)
        assert torch.equal(after.channels["field"], before.channels["field"])

    def test_scans_of_sessions_are_found(self, copied):
        """Maps and χ of each scan in the folder of its session; labels and mask are of the subject."""
        before = load_scans(copied, ("02",), NETWORK)
        for folder in ("maps", "qsm"):
            anat = copied.folder(folder) / "sub-02" / "anat"
            session = anat.parent / "ses-a" / "anat"
            session.mkdir(parents=True)
            for path in anat.iterdir():
                path.rename(session / path.name.replace("sub-02_", "sub-02_ses-a_"))
        after = load_scans(copied, ("02",), NETWORK)
        assert [scan.name for scan in after] == [f"sub-02_ses-a_acq-ori{n}" for n in (1, 2, 3)]
        for one, other in zip(before, after, strict=True):
            assert all(torch.equal(volume, other.channels[name]) for name, volume in one.channels.items())

    def test_axes_of_the_files_do_not_matter(self, copied):
        """The same maps stored with another order and direction of axes make the same scan."""
        before = load_scans(copied, ("02",), NETWORK)
        turn = np.array([[0, -1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
        for path in sorted((copied.dataset / "derivatives").rglob("*.nii.gz")):
            image = nifti.load(path)
            # New voxel (a, b, c) is old voxel (c, n − 1 − a, b).
            n = image.data.shape[1]
            back = np.array([[0, 0, 1, 0], [-1, 0, 0, n - 1], [0, 1, 0, 0], [0, 0, 0, 1.0]])
            moved = np.transpose(image.data[:, ::-1], (1, 2, 0))
            nifti.save(path, moved, image.affine @ back)
        for sidecar in sorted(copied.folder("maps").rglob("*fieldmap.json")):
            facts = json.loads(sidecar.read_text())
            facts["B0DirectionVoxelAxes"] = (turn[:3, :3] @ facts["B0DirectionVoxelAxes"]).tolist()
            sidecar.write_text(json.dumps(facts))
        for one, other in zip(before, load_scans(copied, ("02",), NETWORK), strict=True):
            assert torch.equal(one.mask, other.mask)
            assert other.grid.b0_direction == pytest.approx(one.grid.b0_direction, abs=1e-6)
            for channel, volume in one.channels.items():
                assert torch.equal(volume, other.channels[channel])
            torch.testing.assert_close(one.field_of_label, other.field_of_label, rtol=0, atol=1e-6)
