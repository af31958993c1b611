"""The contracts of single maps, from Python and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from chisep import cli
from chisep.api.evaluate import EvaluateConfig, evaluate
from chisep.api.files import SIGMA_FILES, SOURCE_FILES
from chisep.api.maps import InversionOptions, SeparationOptions, qsm, separate
from chisep.api.weights import weight_cards
from chisep.errors import ChisepWarning, InputError
from chisep.io import nifti
from chisep.methods import scan_relaxivity
from chisep.networks import weights as network_weights
from chisep.networks.inference import NetworkOptions
from chisep.networks.weights import WeightsConfig
from chisep.physics.dipole import Dipole
from chisep.preprocessing.scan_relaxivity import Estimate, ScanRelaxivity
from chisep.types import Grid
from tests.untrained import options_of, save_untrained

SHAPE, VOXEL_MM = (20, 22, 18), (1.0, 1.2, 1.5)
TURN = np.array([[1.0, 0, 0], [0, np.cos(0.3), -np.sin(0.3)], [0, np.sin(0.3), np.cos(0.3)]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = TURN @ np.diag(VOXEL_MM)


@pytest.fixture(scope="module")
def maps() -> dict[str, np.ndarray]:
    """Two boxes, one of each source, on an oblique grid at 3 T."""
    pos, neg, mask = np.zeros((3, *SHAPE), np.float32)
    mask[2:-2, 2:-2, 2:-2] = 1
    pos[5:9, 6:12, 5:12] = 0.1
    neg[11:15, 6:12, 5:12] = 0.05
    grid = Grid(SHAPE, VOXEL_MM, nifti.b0_direction_of(AFFINE))
    field = Dipole(grid).apply(torch.from_numpy(pos - neg)).numpy() * mask
    return {
        "pos": pos,
        "neg": neg,
        "mask": mask,
        "field": field,
        "r2prime": 114 * (pos + neg),
        "r2star": 114 * (pos + neg) + 14 * mask,
        "chi": pos - neg,
    }


@pytest.fixture
def files(maps, tmp_path):
    return {name: nifti.save(tmp_path / f"{name}.nii.gz", data, AFFINE) for name, data in maps.items()}


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict[str, NetworkOptions]:
    """Random weights for the networks."""
    return options_of(tmp_path_factory.mktemp("weights"))


def arguments(files, *names):
    return [word for name in names for word in (f"--{name}", str(files[name]))]


class TestSeparate:
    @pytest.mark.parametrize("kind", ["path", "nibabel", "array"])
    def test_files_images_and_arrays_give_the_same(self, maps, files, kind):
        wrap = {
            "path": lambda name: files[name],
            "nibabel": lambda name: nib.Nifti1Image(maps[name], AFFINE),
            "array": lambda name: maps[name],
        }[kind]
        options = SeparationOptions(
            method="closed-form", b0=3.0, b0_dir=nifti.b0_direction_of(AFFINE) if kind == "array" else None
        )
        images = separate(
            wrap("field"), wrap("r2prime"), wrap("mask"), qsm=wrap("chi"), options=options, voxel_mm=VOXEL_MM
        )
        np.testing.assert_allclose(images.paramagnetic.dataobj, maps["pos"], atol=1e-6)
        np.testing.assert_allclose(images.diamagnetic.dataobj, maps["neg"], atol=1e-6)
        np.testing.assert_allclose(images.total.dataobj, maps["chi"], atol=1e-6)

    def test_command(self, maps, files, tmp_path, capsys):
        out = tmp_path / "out"
        status = cli.main(
            [
                "separate",
                *arguments(files, "field", "r2prime", "mask"),
                "--qsm",
                str(files["chi"]),
                "--b0",
                "3",
                "--dr",
                "114",
                "--method",
                "closed-form",
                "--out",
                str(out),
            ]
        )
        assert status == 0
        images = {
            name: nib.load(out / f"desc-{name}_Chimap.nii.gz")
            for name in ("paramagnetic", "diamagnetic", "total")
        }
        for image in images.values():
            np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
        np.testing.assert_allclose(images["paramagnetic"].dataobj, maps["pos"], atol=1e-6)
        assert capsys.readouterr().out.split() == [str(out / f"desc-{name}_Chimap.nii.gz") for name in images]
        sidecar = json.loads((out / "desc-total_Chimap.json").read_text())
        assert (sidecar["Units"], sidecar["D_r_pos"]) == ("ppm", 114.0)

    def test_relaxivity_defaults_to_the_field_strength(self, maps):
        """At 7 T the same sources have 7/3 of the R2'."""
        images = separate(
            maps["field"],
            maps["r2prime"] * 7 / 3,
            maps["mask"],
            qsm=maps["chi"],
            options=SeparationOptions(method="closed-form", b0=7.0),
            voxel_mm=VOXEL_MM,
        )
        np.testing.assert_allclose(images.paramagnetic.dataobj, maps["pos"], atol=1e-6)

    def test_two_relaxivities(self, maps):
        r2prime = 120 * maps["pos"] + 60 * maps["neg"]
        options = SeparationOptions(method="closed-form", b0=3.0, dr=(120.0, 60.0))
        images = separate(
            maps["field"], r2prime, maps["mask"], qsm=maps["chi"], options=options, voxel_mm=VOXEL_MM
        )
        np.testing.assert_allclose(images.diamagnetic.dataobj, maps["neg"], atol=1e-6)

    @pytest.mark.filterwarnings("default::chisep.errors.ChisepWarning")
    def test_d_r_of_the_scan_is_the_default_where_tissue_says_too_little(self, files, tmp_path, capsys):
        call = ["separate", *arguments(files, "field", "r2prime", "mask"), "--b0", "3"]
        assert cli.main([*call, "--dr", "auto", "--method", "closed-form", "--out", str(tmp_path)]) == 0
        assert "D_r of this scan is too uncertain" in " ".join(capsys.readouterr().err.split())
        sidecar = json.loads((tmp_path / "desc-total_Chimap.json").read_text())
        assert (sidecar["D_r_pos"], sidecar["D_r_source"]) == (114.0, "default")

    def test_d_r_of_the_scan_is_used_where_it_is_certain(self, maps, monkeypatch):
        sure = ScanRelaxivity(Estimate(120.0, (110.0, 130.0), 2.0), Estimate(60.0, (50.0, 70.0), 9.0))
        monkeypatch.setattr(scan_relaxivity, "estimate_relaxivity", lambda maps, **_: sure)
        r2prime = 120 * maps["pos"] + 60 * maps["neg"]
        options = SeparationOptions(method="closed-form", b0=3.0, dr="auto")
        with pytest.warns(ChisepWarning, match="D_r,pos is 120"):
            images = separate(
                maps["field"], r2prime, maps["mask"], qsm=maps["chi"], options=options, voxel_mm=VOXEL_MM
            )
        np.testing.assert_allclose(images.diamagnetic.dataobj, maps["neg"], atol=1e-6)
        assert images.d_r["D_r_neg_high90"] == 70.0

    def test_magnitude_with_echoes_is_their_root_sum_of_squares(self, maps, files, tmp_path):
        echoes = np.stack([3 * maps["mask"] + maps["pos"], 4 * maps["mask"]], -1)
        combined = np.sqrt(np.square(echoes).sum(-1))
        path = nifti.save(tmp_path / "magnitude.nii.gz", echoes, AFFINE)
        results = [
            separate(
                files["field"],
                files["r2prime"],
                files["mask"],
                magnitude=magnitude,
                options=SeparationOptions("iterative", b0=3.0),
            )
            for magnitude in (path, nib.Nifti1Image(combined, AFFINE))
        ]
        np.testing.assert_allclose(results[0].total.dataobj, results[1].total.dataobj, atol=1e-6)

    def test_support_lets_sources_outside_the_mask_explain_the_field(self, maps):
        """The field is known in a part, the sources lie in all of it."""
        known = np.zeros_like(maps["mask"])
        known[7:13, 4:-4, 4:-4] = 1
        options = SeparationOptions("iterative", b0=3.0, b0_dir=nifti.b0_direction_of(AFFINE))
        errors = {}
        for support in (None, maps["mask"]):
            images = separate(
                maps["field"], maps["r2prime"], known, support=support, voxel_mm=VOXEL_MM, options=options
            )
            pos = np.asarray(images.paramagnetic.dataobj)
            assert not pos[(known if support is None else support) == 0].any()
            errors[support is None] = np.linalg.norm((pos - maps["pos"])[known > 0])
        assert errors[False] < errors[True]


class TestNetworks:
    """With random weights: what goes in, what is written beside the maps."""

    def words(self, options):
        names = ("weights", "chi_weights", "rate_weights")
        return [w for name in names for w in (f"--{name.replace('_', '-')}", getattr(options, name))]

    @pytest.mark.parametrize("name", ["chi-sepnet-r2s", "chi-sepnet-r2s-direct"])
    def test_r2star_in_the_place_of_r2prime(self, name, maps, files, options, tmp_path):
        command = ["separate", "--b0", "3", *arguments(files, "field", "r2star", "mask"), "--method", name]
        assert cli.main([*command, *self.words(options[name]), "--out", str(tmp_path)]) == 0
        made = nib.load(tmp_path / "desc-paramagnetic_Chimap.nii.gz").get_fdata()
        assert made.min() >= 0
        assert made[maps["mask"] > 0].any()
        assert not made[maps["mask"] == 0].any()
        images = separate(
            files["field"],
            None,
            files["mask"],
            r2star=files["r2star"],
            options=SeparationOptions(name, b0=3.0, network=options[name]),
        )
        np.testing.assert_array_equal(images.paramagnetic.dataobj, made)
        used = json.loads((tmp_path / "desc-total_Chimap.json").read_text())["Weights"]
        rate = ["r2s"] if name == "chi-sepnet-r2s" else []
        assert [weights["Name"] for weights in used] == [Path(options[name].weights).stem, *rate, "qsmnet"]

    def test_a_given_chi_map_needs_no_weights(self, files, options, tmp_path):
        command = [
            "separate",
            "--b0",
            "3",
            *arguments(files, "field", "r2prime", "mask"),
            "--qsm",
            str(files["chi"]),
        ]
        command += ["--method", "unrolled-thesis", "--weights", options["unrolled-thesis"].weights]
        for precision in ("single", "bfloat16"):
            out = tmp_path / precision
            assert cli.main([*command, "--precision", precision, "--out", str(out)]) == 0
        (used,) = json.loads((out / "desc-total_Chimap.json").read_text())["Weights"]
        assert used["Name"] == "unrolled-thesis"
        single, low = (
            nib.load(tmp_path / name / "desc-total_Chimap.nii.gz").get_fdata()
            for name in ("single", "bfloat16")
        )
        assert 0 < np.abs(single - low).max() < 0.1

    @pytest.mark.filterwarnings("ignore:the estimate of the network misses R2'")  # of random weights
    def test_noise_in_and_uncertainty_out(self, maps, files, options, tmp_path):
        command = [
            "separate",
            "--b0",
            "3",
            *arguments(files, "field", "r2prime", "mask"),
            "--method",
            "unrolled",
        ]
        command += ["--weights", options["unrolled"].weights, "--precision", "single"]
        assert cli.main([*command, "--out", str(tmp_path / "estimated")]) == 0
        sigma = nib.Nifti1Image(4.0 * (maps["mask"] > 0), nib.load(files["mask"]).affine)
        nib.save(sigma, tmp_path / "sigma.nii.gz")
        told = ["--r2prime-sigma", str(tmp_path / "sigma.nii.gz"), "--out", str(tmp_path / "told")]
        assert cli.main([*command, *told]) == 0
        inside = maps["mask"] > 0
        made = {}
        for name in ("estimated", "told"):
            for source in SIGMA_FILES:
                sd = nib.load(tmp_path / name / SIGMA_FILES[source]).get_fdata()
                assert (sd[inside] > 0).all()
                assert not sd[~inside].any()
            made[name] = nib.load(tmp_path / name / SOURCE_FILES["total"]).get_fdata()
        assert np.abs(made["told"] - made["estimated"]).max() > 1e-4
        iterative = SeparationOptions("iterative", b0=3.0)
        solver = separate(files["field"], files["r2prime"], files["mask"], options=iterative)
        assert solver.paramagnetic_sigma is None

    @pytest.mark.filterwarnings("ignore:the estimate of the network misses R2'")  # of random weights
    def test_r2star_will_do_for_a_method_that_knows_what_that_costs(self, files, options):
        wanted = SeparationOptions("unrolled", b0=3.0, network=options["unrolled"])
        with pytest.warns(ChisepWarning, match=r"pseudo-R2 of 12.7 1/s"):
            images = separate(files["field"], None, files["mask"], r2star=files["r2star"], options=wanted)
        assert images.paramagnetic_sigma.get_fdata().any()

    @pytest.mark.parametrize(
        ("method", "given", "wanted"),
        [("iterative", "r2star", "r2prime"), ("chi-sepnet-r2s", "r2prime", "r2star")],
    )
    def test_the_other_rate_is_not_enough(self, method, given, wanted, files, tmp_path, capsys):
        command = ["separate", "--b0", "3", *arguments(files, "field", given, "mask"), "--method", method]
        assert cli.main([*command, "--out", str(tmp_path / "out")]) == 1
        assert f"no {wanted} map" in capsys.readouterr().err

    def test_solvers_refuse_weights(self, files, options, tmp_path, capsys):
        weights = ["--weights", options["qsmnet"].weights]
        out = ["--out", str(tmp_path / "chi.nii.gz")]
        assert cli.main(["qsm", *arguments(files, "field", "mask"), "--method", "tv", *weights, *out]) == 1
        assert "which is no network" in capsys.readouterr().err
        with pytest.raises(InputError, match="which is no network"):
            SeparationOptions("iterative", b0=3.0, network=options["chi-sepnet-r2p"])

    def test_weights_of_another_kind(self, files, options, tmp_path, capsys):
        command = ["qsm", *arguments(files, "field", "mask"), "--method", "qsmnet"]
        command += ["--weights", options["chi-sepnet-r2p"].weights, "--out", str(tmp_path / "chi.nii.gz")]
        assert cli.main(command) == 1
        assert "expected one to chi" in capsys.readouterr().err


CARDS = Path(__file__).parent.parent / "docs" / "weights"


class TestWeights:
    def test_shipped_weights_say_how_far_to_trust_them(self):
        cards = weight_cards(WeightsConfig())
        assert set(cards) == set(network_weights.shipped())
        for card in cards.values():
            assert card["trust"] == "trained on simulated subjects, not validated in vivo"

    def test_card_of_a_file(self, tmp_path, capsys):
        path = save_untrained(tmp_path, "chi-sepnet-r2p")
        card = weight_cards(WeightsConfig(str(path)))["chi-sepnet-r2p"]
        # Levels of 4 and 8 channels: two convolutions and norms each, one way up, a head.
        convolutions = 27 * (3 * 4 + 4 * 4 + 4 * 8 + 8 * 8 + 8 * 4 + 4 * 4)
        assert card["parameters"] == convolutions + 2 * (4 + 4 + 8 + 8 + 4 + 4) + (8 * 8 * 4 + 4) + (
            4 * 2 + 2
        )
        assert card["bytes"] == path.stat().st_size
        assert "simulated" not in card["trust"]
        assert cli.main(["weights", str(path)]) == 0
        printed = capsys.readouterr().out
        for words in (str(card["parameters"]), "qsm, r2prime, field", "CC0-1.0", "validation_loss"):
            assert words in printed

    def test_model_cards_are_those_of_the_manual(self, capsys):
        cards = weight_cards(WeightsConfig())
        assert {path.stem for path in CARDS.glob("*.md")} == {*cards, "index"}
        for name, card in cards.items():
            assert cli.main(["weights", name, "--card"]) == 0
            printed = capsys.readouterr().out
            assert printed == (CARDS / f"{name}.md").read_text(encoding="utf-8")
            for words in ("rained on simulated subjects, not validated in vivo", card["licence_of_data"]):
                assert words in printed

    def test_card_of_a_header_that_says_too_little(self, tmp_path, capsys):
        path = save_untrained(tmp_path, "chi-sepnet-r2p")
        assert cli.main(["weights", str(path), "--card"]) == 1
        assert "'recipe'" in capsys.readouterr().err

    def test_no_such_weights(self, capsys):
        assert cli.main(["weights", "no-such-weights"]) == 1
        assert "no-such-weights" in capsys.readouterr().err

    def test_list(self, capsys):
        assert cli.main(["weights"]) == 0
        printed = capsys.readouterr().out
        assert all(
            name in printed for name in network_weights.shipped() or ["this version has no packaged weights"]
        )
        assert cli.main(["weights", "--json"]) == 0
        assert set(json.loads(capsys.readouterr().out)) == set(network_weights.shipped())


class TestRefuses:
    """Exit status 1, one message on standard error, nothing written."""

    def check(self, capsys, arguments, out, *words):
        assert cli.main(arguments) == 1
        message = capsys.readouterr().err
        assert message.startswith("chisep: error: ")
        for word in words:
            assert word in message
        assert not list(out.rglob("*.nii*"))

    def test_other_grid(self, files, maps, tmp_path, capsys):
        files["mask"] = nifti.save(tmp_path / "small.nii.gz", maps["mask"][1:], AFFINE)
        out = tmp_path / "out"
        command = ["separate", "--b0", "3", *arguments(files, "field", "r2prime", "mask"), "--out", str(out)]
        self.check(capsys, command, out, "small.nii.gz", "shape (19, 22, 18)", "field.nii.gz")

    def test_empty_mask(self, files, maps, tmp_path, capsys):
        files["mask"] = nifti.save(tmp_path / "empty.nii.gz", 0 * maps["mask"], AFFINE)
        out = tmp_path / "out"
        command = ["separate", "--b0", "3", *arguments(files, "field", "r2prime", "mask"), "--out", str(out)]
        self.check(capsys, command, out, "empty.nii.gz", "without any voxel inside")

    def test_unknown_method(self, files, tmp_path, capsys):
        out = tmp_path / "out"
        command = [
            *("separate", "--b0", "3"),
            *arguments(files, "field", "r2prime", "mask"),
            "--method",
            "itterative",
            "--out",
            str(out),
        ]
        self.check(capsys, command, out, "itterative", "iterative", "closed-form")
        command = [
            "qsm",
            *arguments(files, "field", "mask"),
            "--method",
            "iterative",
            "--out",
            str(out / "chi.nii.gz"),
        ]
        self.check(capsys, command, out, "iterative", "tikhonov", "tkd", "tv")

    def test_output_that_cannot_be_written(self, files, tmp_path, capsys):
        command = [
            "separate",
            "--b0",
            "3",
            *arguments(files, "field", "r2prime", "mask"),
            "--out",
            str(files["field"]),
        ]
        self.check(capsys, command, tmp_path / "out", "cannot be written")

    def test_output_name(self, files, tmp_path, capsys):
        command = ["qsm", *arguments(files, "field", "mask"), "--out", str(tmp_path / "chi.mat")]
        self.check(capsys, command, tmp_path / "out", "--out", ".nii.gz")

    def test_absent_gpu(self, files, tmp_path, capsys):
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        out = tmp_path / "out"
        command = [
            "qsm",
            *arguments(files, "field", "mask"),
            "--device",
            "cuda",
            "--out",
            str(out / "chi.nii.gz"),
        ]
        self.check(capsys, command, out, "cuda")

    def test_array_without_voxel_size(self, maps):
        with pytest.raises(InputError, match="voxel_mm"):
            qsm(maps["field"], maps["mask"])


def test_qsm_reads_the_error_of_the_field(files, maps, tmp_path):
    """`tv` smooths more where the error is larger; the unit is that of the field."""
    inside = maps["mask"] > 0
    roughness = {}
    for name, sigma_ppb, units in (("small", 0.5, "ppm"), ("large", 2.0, "ppm"), ("same", 2.0, "ppb")):
        scale = 1e-3 if units == "ppm" else 1.0
        sigma = nib.Nifti1Image(np.float32(sigma_ppb * scale * inside), nib.load(files["mask"]).affine)
        sigma.set_sform(sigma.affine, 1)
        nib.save(sigma, tmp_path / f"{name}-sigma.nii.gz")
        field = tmp_path / f"{name}-field.nii.gz"
        data = nib.load(files["field"]).get_fdata() * scale / 1e-3
        nib.save(nib.Nifti1Image(np.float32(data), sigma.affine, sigma.header), field)
        out = tmp_path / f"{name}.nii.gz"
        command = [
            "qsm",
            "--field",
            str(field),
            *arguments(files, "mask"),
            "--units",
            units,
            "--method",
            "tv",
        ]
        assert (
            cli.main([*command, "--field-sigma", str(tmp_path / f"{name}-sigma.nii.gz"), "--out", str(out)])
            == 0
        )
        roughness[name] = np.abs(np.diff(nib.load(out).get_fdata(), axis=0)).sum()
    assert roughness["large"] < 0.99 * roughness["small"]
    assert roughness["same"] == pytest.approx(roughness["large"], rel=1e-3)


def test_qsm_command(files, maps, tmp_path, capsys):
    out = tmp_path / "sub" / "chi.nii.gz"
    direction = [str(b) for b in nifti.b0_direction_of(AFFINE)]
    for extra in ([], ["--b0-dir", *direction]):
        assert (
            cli.main(["qsm", *arguments(files, "field", "mask"), "--method", "tv", *extra, "--out", str(out)])
            == 0
        )
        chi = nib.load(out).get_fdata()
        assert np.corrcoef(chi[maps["mask"] > 0], maps["chi"][maps["mask"] > 0])[0, 1] > 0.9
    assert capsys.readouterr().out.split() == [str(out)] * 2


def test_a_reference_of_one_map(files, maps, tmp_path):
    """Subtracted inside the mask, and stated in the sidecar."""
    inside = maps["mask"] > 0
    command = ["qsm", *arguments(files, "field", "mask"), "--method", "tkd", "--out"]
    made = {}
    for reference in ("none", "brain", str(files["mask"])):
        out = tmp_path / f"{len(made)}.nii.gz"
        assert cli.main([*command, str(out), "--reference", reference]) == 0
        made[reference] = nib.load(out).get_fdata()
        said = json.loads(out.with_name(f"{len(made) - 1}.json").read_text())
        assert said["ReferenceRegion"].startswith({"none": "none", "brain": "brain:"}.get(reference, "mask "))
        if reference != "none":
            assert abs(made[reference][inside].mean()) < 1e-6
            assert said["ReferencePpb"] == pytest.approx(1000 * made["none"][inside].mean(), abs=1e-3)
            assert not made[reference][~inside].any()
    with pytest.raises(InputError, match="csf needs regions"):
        InversionOptions(reference=Path("csf"))


class TestEvaluate:
    def test_perfect_maps(self, files, maps, tmp_path, capsys):
        folder = tmp_path / "maps"
        for name, data in (
            ("paramagnetic", maps["pos"]),
            ("diamagnetic", maps["neg"]),
            ("total", maps["chi"]),
        ):
            nifti.save(folder / f"sub-01_desc-{name}_Chimap.nii.gz", data, AFFINE)
        command = ["evaluate", "--pred", str(folder), "--truth", str(folder), "--mask", str(files["mask"])]
        assert cli.main(command) == 0
        scores = json.loads(capsys.readouterr().out)
        for source in ("paramagnetic", "diamagnetic", "total"):
            assert scores[source]["nrmse_percent"] == 0
            assert scores[source]["xsim"] == pytest.approx(1)
            assert scores[source]["ssim"] == pytest.approx(1)
            assert scores[source]["psnr_db"] is None  # infinite

    def test_nothing_in_common(self, files, tmp_path):
        with pytest.raises(InputError, match="no map"):
            evaluate(EvaluateConfig(tmp_path, tmp_path, files["mask"]))
