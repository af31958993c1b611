"""Maps given by hand in units that chisep does not take: refused with the factor, or converted if stated."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from chisep import cli
from chisep.api.maps import InversionOptions, SeparationOptions, qsm, separate
from chisep.errors import ChisepWarning, InputError
from chisep.io import bids, nifti
from chisep.physics.signal import hz_per_ppm

B0_T = 3.0
HZ, RAD_S = hz_per_ppm(B0_T), 2 * np.pi * hz_per_ppm(B0_T)


@pytest.fixture(scope="module")
def brain(raw_gradient_echo) -> dict[str, Path]:
    """True maps of a simulated head."""
    folder = raw_gradient_echo / "derivatives" / "truth" / "sub-01" / "anat"
    names = {
        "field": "desc-local_fieldmap",
        "r2prime": "R2primemap",
        "r2star": "R2starmap",
        "mask": "desc-brain_mask",
        "chi": "desc-total_Chimap",
    }
    return {key: folder / f"sub-01_{name}.nii.gz" for key, name in names.items()}


@pytest.fixture
def maps(brain, tmp_path):
    """The same without sidecars, to change."""
    return {key: nifti.save(tmp_path / f"{key}.nii.gz", *_read(path)) for key, path in brain.items()}


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    return np.asarray(image.dataobj, dtype=np.float32), image.affine


def scaled(path: Path, factor: float) -> Path:
    data, affine = _read(path)
    return nifti.save(path.with_name(f"other-{path.name}"), factor * data, affine)


def inverse(path: Path, numerator: float) -> Path:
    data, affine = _read(path)
    return nifti.save(
        path.with_name(f"other-{path.name}"), np.where(data > 0, numerator / np.maximum(data, 1), 0), affine
    )


def options(**given) -> SeparationOptions:
    return SeparationOptions(method="closed-form", **({"b0": B0_T} | given))


def separated(maps, **changed):
    maps = maps | changed
    return separate(maps["field"], maps["r2prime"], maps["mask"], qsm=maps["chi"], options=options())


def test_maps_in_their_units_pass_without_a_word(maps):
    separated(maps)
    qsm(maps["field"], maps["mask"], options=InversionOptions(method="tkd"))


@pytest.mark.parametrize(("factor", "unit"), [(HZ, "hz"), (RAD_S, "rad/s"), (1000, "ppb")])
def test_field_in_another_unit_is_refused_and_converted_where_stated(maps, factor, unit):
    other = scaled(maps["field"], factor)
    with pytest.raises(InputError, match=rf"field map.*--units {unit} ") as caught:
        separated(maps, field=other)
    assert f"× {1 / factor:.4g}" in str(caught.value)
    with pytest.raises(InputError, match="State its unit"):
        qsm(other, maps["mask"], options=InversionOptions(method="tkd"))
    usual = qsm(maps["field"], maps["mask"], options=InversionOptions(method="tkd"))
    converted = qsm(other, maps["mask"], options=InversionOptions(method="tkd", units=unit, b0=B0_T))
    np.testing.assert_allclose(converted.dataobj, usual.dataobj, atol=1e-6)
    assert np.abs(usual.dataobj).max() > 0.01


@pytest.mark.parametrize("b0_t", [1.5, 3.0, 7.0])
def test_hertz_are_recognised_at_every_field_strength(maps, b0_t):
    with pytest.raises(InputError, match="--units hz"):
        separate(
            scaled(maps["field"], hz_per_ppm(b0_t)),
            maps["r2prime"],
            maps["mask"],
            qsm=maps["chi"],
            options=options(b0=b0_t),
        )


def test_a_stray_voxel_of_the_field_is_refused(maps):
    data, affine = _read(maps["field"])
    data[tuple(np.argwhere(_read(maps["mask"])[0] > 0)[100])] = 1e4
    path = nifti.save(maps["field"].with_name("stray.nii.gz"), data, affine)
    with pytest.raises(InputError, match="beyond ±5 ppm in 1 voxels of the mask"):
        separated(maps, field=path)


def test_frequency_without_field_strength_asks_for_it(maps):
    with pytest.raises(InputError, match="--b0"):
        qsm(maps["field"], maps["mask"], options=InversionOptions(method="tkd", units="hz"))


def test_field_with_its_background_is_warned_of(maps):
    local, affine = _read(maps["field"])
    ramp = np.linspace(-0.2, 0.2, local.shape[0], dtype=np.float32)[:, None, None]
    path = nifti.save(maps["field"].with_name("total.nii.gz"), local + ramp, affine)
    with pytest.warns(ChisepWarning, match="free of background"):
        qsm(path, maps["mask"], options=InversionOptions(method="tkd"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: scaled(m["r2prime"], 1e-3), "multiply it by 1000"),
        (lambda m: inverse(m["r2star"], 1000), "1000 / T2"),
        (lambda m: inverse(m["r2star"], 1), "multiply it by 1000; if it is a time in s, take 1 / time"),
        (lambda m: m["r2star"], "subtract R2"),
    ],
    ids=["1/ms", "T2* in ms", "T2* in s", "R2*"],
)
def test_other_maps_than_r2prime_are_refused(maps, change, words):
    with pytest.raises(InputError, match="map of R2'") as caught:
        separated(maps, r2prime=change(maps))
    assert words in str(caught.value)


def test_noise_of_r2prime_below_0_is_no_mistake(maps):
    data, affine = _read(maps["r2prime"])
    noise = np.random.default_rng(0).normal(0, 2, data.shape).astype(np.float32)
    assert ((data + noise)[_read(maps["mask"])[0] > 0] < 0).any()
    separated(maps, r2prime=nifti.save(maps["r2prime"].with_name("noisy.nii.gz"), data + noise, affine))


def test_r2prime_of_the_wrong_sign_is_refused(maps):
    with pytest.raises(InputError, match=r"map of R2'.*check its sign"):
        separated(maps, r2prime=scaled(maps["r2prime"], -1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: scaled(m["r2star"], 1e-3), "multiply it by 1000"),
        (lambda m: inverse(m["r2star"], 1000), "1000 / time"),
    ],
    ids=["1/ms", "T2* in ms"],
)
def test_other_maps_than_r2star_are_refused(maps, change, words):
    with pytest.raises(InputError, match=r"map of R2\*") as caught:
        separate(
            maps["field"],
            maps["r2prime"],
            maps["mask"],
            r2star=change(maps),
            qsm=maps["chi"],
            options=options(),
        )
    assert words in str(caught.value)


def test_chi_in_ppb_is_refused(maps):
    with pytest.raises(InputError, match=r"multiply it by 0\.001"):
        separated(maps, chi=scaled(maps["chi"], 1000))


def test_stating_the_unit_insists(maps):
    """A stated unit makes of every refusal a warning, for what is right and unlike a brain."""
    with (
        pytest.warns(ChisepWarning, match="field map: values of typically"),
        pytest.warns(ChisepWarning, match="χ is typically"),
    ):
        qsm(scaled(maps["field"], HZ), maps["mask"], options=InversionOptions(method="tkd", units="ppm"))


def test_names_of_units_are_exact(maps):
    """A capital letter must not make a field in Hz one in rad/s."""
    for kind in (SeparationOptions, InversionOptions):
        with pytest.raises(InputError, match=r"--units: found 'Hz'.*small letters"):
            kind(units="Hz", b0=B0_T)


def test_a_field_larger_than_r2prime_allows_is_warned_of(maps):
    with pytest.warns(ChisepWarning, match="sources that make this R2' have at most"):
        separated(maps, field=scaled(maps["field"], 4))


def test_a_field_four_times_too_large_is_warned_of_without_r2prime(maps):
    with pytest.warns(ChisepWarning, match=r"χ is typically .* is the field in ppm"):
        qsm(scaled(maps["field"], 4), maps["mask"], options=InversionOptions(method="tkd"))


def test_a_time_in_seconds_is_no_r2prime(maps):
    with pytest.warns(ChisepWarning, match="not a time"):
        separated(maps, r2prime=inverse(maps["r2prime"], 1))


def test_an_inverted_mask_is_refused(maps):
    data, affine = _read(maps["mask"])
    inverted = nifti.save(maps["mask"].with_name("inverted.nii.gz"), 1 - data, affine)
    with pytest.raises(InputError, match=r"mask.*swap 0 and 1"):
        separated(maps, mask=inverted)
    with pytest.raises(InputError, match=r"mask.*swap 0 and 1"):
        qsm(maps["field"], inverted, options=InversionOptions(method="tkd"))


def with_magnitude(maps, change):
    data, affine = _read(maps["mask"])
    path = nifti.save(maps["mask"].with_name("magnitude.nii.gz"), change(data), affine)
    return qsm(maps["field"], maps["mask"], magnitude=path, options=InversionOptions(method="tkd"))


def test_a_phase_image_is_no_magnitude(maps):
    noise = np.random.default_rng(0).uniform(-3, 3, _read(maps["mask"])[0].shape).astype(np.float32)
    with pytest.raises(InputError, match=r"magnitude.*phase image"):
        with_magnitude(maps, lambda mask: noise)


def test_a_mask_where_the_magnitude_is_dark_is_warned_of(maps):
    with pytest.warns(ChisepWarning, match="do mask and magnitude belong together"):
        with_magnitude(maps, lambda mask: np.where(mask > 0, 1.0, 9.0).astype(np.float32))
    with_magnitude(maps, lambda mask: np.where(mask > 0, 9.0, 1.0).astype(np.float32))


@pytest.mark.parametrize(
    ("sigma", "words"), [(1.0, "in the unit of the field"), (0.0, "no voxel of the field")]
)
def test_sigma_that_cannot_be_that_of_the_field_is_warned_of(maps, sigma, words):
    data, affine = _read(maps["mask"])
    path = nifti.save(maps["mask"].with_name("sigma.nii.gz"), sigma * data, affine)
    with pytest.warns(ChisepWarning, match=words):
        qsm(maps["field"], maps["mask"], field_sigma=path, options=InversionOptions(method="tkd"))


@pytest.mark.parametrize("d_r", [11.0, 0.114e6])
def test_d_r_in_another_unit_is_warned_of(maps, d_r):
    with pytest.warns(ChisepWarning, match="is it in 1/s/ppm"):
        separate(maps["field"], maps["r2prime"], maps["mask"], qsm=maps["chi"], options=options(dr=(d_r,)))


def arguments(maps, out: Path, *more: str) -> list[str]:
    named = [w for key in ("field", "r2prime", "mask") for w in (f"--{key}", str(maps[key]))]
    return [
        *("separate", *named, "--qsm", str(maps["chi"]), "--method", "closed-form"),
        *("--out", str(out), *more),
    ]


def test_field_strength_is_asked_for_never_assumed(maps, tmp_path, capsys):
    assert cli.main(arguments(maps, tmp_path / "out")) == 1
    message = capsys.readouterr().err
    assert "--b0" in message
    assert "no field strength" in message
    assert not list(tmp_path.glob("out/*.nii.gz"))


@pytest.mark.parametrize(
    "content", [{"MagneticFieldStrength": 7}, {"Parameters": {"MagneticFieldStrength": 7.0}}]
)
def test_field_strength_of_the_sidecar(maps, tmp_path, content):
    bids.sidecar_of(maps["field"]).write_text(json.dumps(content))
    assert cli.main(arguments(maps, tmp_path / "out")) == 0
    facts = json.loads((tmp_path / "out" / "desc-total_Chimap.json").read_text())
    assert facts["MagneticFieldStrength"] == 7.0
    assert facts["D_r_pos"] == pytest.approx(114 * 7 / 3)


def test_field_strengths_that_differ_are_refused(maps, tmp_path, capsys):
    bids.sidecar_of(maps["field"]).write_text('{"MagneticFieldStrength": 7}')
    bids.sidecar_of(maps["r2prime"]).write_text('{"MagneticFieldStrength": 3}')
    assert cli.main(arguments(maps, tmp_path / "out")) == 1
    assert "r2prime.json" in capsys.readouterr().err
    assert cli.main(arguments(maps, tmp_path / "out", "--b0", "3")) == 0


def test_units_are_written_to_the_sidecar(maps, tmp_path):
    hertz = maps | {"field": scaled(maps["field"], HZ)}
    assert cli.main(arguments(hertz, tmp_path / "out", "--b0", "3", "--units", "hz")) == 0
    assert cli.main(arguments(maps, tmp_path / "usual", "--b0", "3")) == 0
    made, usual = (_read(tmp_path / d / "desc-total_Chimap.nii.gz")[0] for d in ("out", "usual"))
    np.testing.assert_allclose(made, usual, atol=1e-6)
    assert json.loads((tmp_path / "out" / "desc-total_Chimap.json").read_text())["FieldUnits"] == "hz"
