"""From DICOM files as vendors write them, through the real converter, to a BIDS dataset."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from chisep.errors import ChisepWarning, InputError
from chisep.io import discovery, nifti
from chisep.io.ingest import dicom
from chisep.io.ingest.dicom import DicomConfig, convert, phase_in_radians, slices_alternate

SHAPE = (8, 9, 6)
TE_MS = (5.0, 11.0, 17.0)
TE_SE_MS = (15.0, 30.0, 45.0)
VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")
_instances = itertools.count(1)


def write_series(folder, stored, te_ms, echo, *, number, maker, kind, name="gre", sequence="GR", **more):
    """Write one volume of stored numbers, slice by slice."""
    folder.mkdir(exist_ok=True)
    for k in range(stored.shape[2]):
        instance = next(_instances)
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.8.498.{number}.{instance}"
        file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        file.SOPClassUID, file.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        file.Modality, file.Manufacturer = "MR", maker
        file.PatientName, file.PatientID, file.PatientBirthDate = "Secret^Name", "ID77", "19700101"
        file.InstitutionName, file.StudyDate, file.AcquisitionTime = "Hidden Hospital", "20240229", "101112"
        file.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.9"
        file.SeriesInstanceUID = f"1.2.826.0.1.3680043.8.498.{number}"
        file.SeriesNumber, file.AcquisitionNumber, file.InstanceNumber = number, 1, instance
        file.ProtocolName = file.SeriesDescription = name
        file.ImageType = ["ORIGINAL", "PRIMARY", *kind]
        file.ScanningSequence, file.SequenceVariant, file.MRAcquisitionType = sequence, "SP", "3D"
        file.EchoTime, file.EchoNumbers, file.RepetitionTime, file.FlipAngle = te_ms, echo, 33, 15
        file.MagneticFieldStrength = 3
        in_plane, across = more.get("edges", (1, 2))
        file.SliceThickness = file.SpacingBetweenSlices = across
        file.PixelSpacing, file.ImageOrientationPatient = [in_plane, in_plane], [1, 0, 0, 0, 1, 0]
        file.ImagePositionPatient, file.PatientPosition = [0, 0, across * k], "HFS"
        file.Columns, file.Rows = stored.shape[:2]
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
        file.PixelRepresentation = int(stored.min() < 0)
        file.PixelData = stored[:, :, k].T.astype("<i2").tobytes()
        if "rescale" in more:
            file.RescaleSlope, file.RescaleIntercept = more["rescale"]
            file.RescaleType = more.get("unit", "US")
        if "ge_part" in more:
            block = file.private_block(0x0043, "GEMS_PARM_01", create=True)
            block.add_new(0x2F, "SS", more["ge_part"])
        pydicom.dcmwrite(folder / f"{instance}.dcm", file, enforce_file_format=True)


def signal(te_ms, seed=0):
    """Complex signal whose phase grows with TE, smooth but for a little noise."""
    rng = np.random.default_rng(seed)
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    field = 0.3 * i - 0.2 * j * k + 0.1
    return (800 + 100 * rng.uniform(size=SHAPE)) * np.exp(1j * field * te_ms - te_ms / 40)


def siemens(folder, number=5, **more):
    for echo, te in enumerate(TE_MS, start=1):
        s = signal(te)
        phase = np.clip(np.round((np.angle(s) / np.pi + 1) * 2048), 0, 4095)
        facts = {"maker": "SIEMENS", "name": "gre_me", **more}
        write_series(folder, np.abs(s).round(), te, echo, number=number, kind=("M", "ND"), **facts)
        facts |= {"rescale": (2, -4096)}
        write_series(folder, phase, te, echo, number=number + 1, kind=("P", "ND"), **facts)


def philips(folder):
    for echo, te in enumerate(TE_MS, start=1):
        s, slope, intercept = signal(te), 1.5346, -3141.59
        phase = np.clip(np.round((1000 * np.angle(s) - intercept) / slope), 0, 4095)
        facts = {"number": 25, "maker": "Philips Medical Systems"}
        mag = np.abs(s).round()
        write_series(folder, mag, te, echo, kind=("M_FFE", "M", "FFE"), rescale=(1, 0), **facts)
        facts |= {"rescale": (slope, intercept), "unit": "mrad"}
        write_series(folder, phase, te, echo, kind=("PHASE MAP", "P", "FFE"), **facts)


def ge(folder, turned=False):
    for echo, te in enumerate(TE_MS, start=1):
        s = signal(te)
        if turned:
            s[..., 1::2] *= -1
        for part, values in ((0, np.abs(s)), (2, s.real), (3, s.imag)):
            facts = {"number": 15, "maker": "GE MEDICAL SYSTEMS", "kind": ("OTHER",), "ge_part": part}
            write_series(folder, values.round(), te, echo, **facts)


def spin_echo(folder, number=8, name="se_me", te_ms=TE_SE_MS):
    for echo, te in enumerate(te_ms, start=1):
        facts = {"number": number, "maker": "SIEMENS", "kind": ("M", "ND"), "name": name}
        write_series(folder, np.abs(signal(te)).round(), te, echo, sequence="SE", **facts)


@pytest.fixture
def scans(tmp_path):
    return tmp_path / "dicom"


def config(scans, **more):
    return DicomConfig(scans, scans.parent / "bids", "01", **more)


def check_signal(root, *, phase_tolerance):
    """Every echo is the signal that was written, turned and flipped as dcm2niix turns slices."""
    (session,) = discovery.find_sessions(root)
    assert session.megre.te_s == tuple(te / 1000 for te in TE_MS)
    assert session.megre.phase_units == "rad"
    for te, magnitude, phase in zip(TE_MS, session.megre.magnitude, session.megre.phase, strict=True):
        read = nifti.load(magnitude).data * np.exp(1j * nifti.load(phase).data)
        # DICOM's rows run downwards: NIfTI has j reversed.
        wanted = signal(te)[:, ::-1]
        assert np.abs(np.abs(read) - np.abs(wanted)).max() < 1
        assert np.abs(np.angle(read / wanted)).max() < phase_tolerance
    return session


@pytest.mark.parametrize(("vendor", "tolerance"), [(siemens, 0.002), (philips, 0.002), (ge, 0.004)])
def test_magnitude_and_phase_of_every_vendor(scans, vendor, tolerance):
    vendor(scans)
    spin_echo(scans)
    written = convert(config(scans))
    assert len(written) == 9
    session = check_signal(scans.parent / "bids", phase_tolerance=tolerance)
    assert session.megre.b0_t == 3.0
    assert session.mese is not None
    assert session.mese.te_s == tuple(te / 1000 for te in TE_SE_MS)


def test_the_dataset_is_valid_and_tells_nothing_of_the_person(scans):
    siemens(scans)
    spin_echo(scans)
    convert(config(scans, session="ses-a"))
    root = scans.parent / "bids"
    subprocess.run([VALIDATOR, root], check=True, capture_output=True)
    text = "".join(path.read_text() for path in root.rglob("*.json"))
    for secret in ("Secret", "ID77", "1970", "Hidden", "2024", "10:11", "gre_me"):
        assert secret not in text
    assert '"RepetitionTimeExcitation": 0.033' in text
    assert (root / "sub-01/ses-a/anat/sub-01_ses-a_echo-1_part-phase_MEGRE.nii.gz").exists()
    with pytest.raises(InputError, match="session that is not there yet"):
        convert(config(scans, session="a"))


def test_slices_whose_sign_alternates_are_turned_back(scans):
    ge(scans, turned=True)
    spin_echo(scans)
    with pytest.warns(ChisepWarning, match="slice to slice"):
        convert(config(scans))
    root = scans.parent / "bids"
    (session,) = discovery.find_sessions(root)
    for te, phase in zip(TE_MS, session.megre.phase, strict=True):
        turned = np.exp(1j * nifti.load(phase).data) / np.exp(1j * np.angle(signal(te)[:, ::-1]))
        # Which half of the slices is turned does not matter: one sign remains for the whole volume.
        assert np.abs(np.angle(turned / turned[0, 0, 0])).max() < 0.01


def test_without_spin_echo_the_user_is_told(scans):
    siemens(scans)
    with pytest.warns(ChisepWarning, match=r"no multi-echo spin echo.*\[5\] gre_me"):
        convert(config(scans))


class TestChoice:
    def test_a_repetition_is_ambiguous_until_chosen(self, scans):
        siemens(scans)
        siemens(scans, number=7)
        with pytest.raises(InputError, match=r"2 series.*\[5\] gre_me \(GR; magnitude; TE 5, 11, 17 ms\)"):
            convert(config(scans, mese=("none",)))
        assert not (scans.parent / "bids").exists()
        assert len(convert(config(scans, megre=("7", "8"), mese=("none",)))) == 6

    def test_a_second_magnitude_without_phase_is_no_candidate(self, scans):
        siemens(scans, number=6)
        for echo, te in enumerate(TE_MS, start=1):
            facts = {"number": 5, "maker": "SIEMENS", "name": "gre_me", "kind": ("M", "NORM")}
            write_series(scans, np.abs(signal(te)).round(), te, echo, **facts)
        convert(config(scans, mese=("none",)))
        check_signal(scans.parent / "bids", phase_tolerance=0.002)

    def test_names_choose_as_well(self, scans):
        siemens(scans)
        spin_echo(scans, 8, "T2map_a")
        spin_echo(scans, 9, "T2map_b")
        with pytest.raises(InputError, match=r"--mese"):
            convert(config(scans))
        assert len(convert(config(scans, mese=("t2*_B",)))) == 9

    def test_other_scans_are_left_alone(self, scans):
        siemens(scans)
        siemens(scans, number=11, name="mprage_me", sequence=["GR", "IR"])
        siemens(scans, number=13, name="bold_me", sequence=["EP"])
        spin_echo(scans, 20, "t2_tse", te_ms=(12.0, 90.0))
        convert(config(scans, mese=("none",)))
        check_signal(scans.parent / "bids", phase_tolerance=0.002)

    def test_magnitude_alone_is_not_enough(self, scans):
        for echo, te in enumerate(TE_MS, start=1):
            facts = {"number": 5, "maker": "SIEMENS", "kind": ("M",)}
            write_series(scans, np.abs(signal(te)).round(), te, echo, **facts)
        with pytest.raises(InputError, match="magnitude and phase, or real and imaginary"):
            convert(config(scans))


class TestRefuses:
    def test_a_folder_without_dicom(self, scans):
        with pytest.raises(InputError, match="no such directory"):
            convert(config(scans))
        scans.mkdir()
        (scans / "note.txt").write_text("no image")
        with pytest.raises(InputError, match="nothing that dcm2niix converts"):
            convert(config(scans))

    def test_a_missing_converter(self, scans, monkeypatch):
        siemens(scans)
        monkeypatch.setitem(sys.modules, "dcm2niix", None)
        monkeypatch.setenv("PATH", "")
        with pytest.raises(InputError, match=r"pip install 'chisep\[dicom\]'"):
            convert(config(scans))

    @pytest.mark.parametrize("labels", [{"participant": "../01"}, {"participant": "1", "session": "a b"}])
    def test_labels_with_separators(self, scans, labels):
        with pytest.raises(InputError, match="letters and digits"):
            DicomConfig(scans, scans, **labels)


@pytest.mark.parametrize(
    ("low", "high", "maker"),
    [
        (-3.1, 3.14, "Siemens"),
        (-4096, 4094, "Siemens"),
        (0, 4095, "Siemens"),
        (-3141, 3142, "GE"),
        (-3141.6, 3140.1, "Philips"),
    ],
)
def test_scales_of_phase(low, high, maker):
    stored = np.linspace(low, high, 60).reshape(1, 3, 4, 5)
    phase = phase_in_radians(stored, maker)
    assert phase is not None
    assert phase.min() == pytest.approx(-np.pi, abs=0.05)
    assert phase.max() == pytest.approx(np.pi, abs=0.05)


def test_an_unknown_scale_is_not_guessed():
    assert phase_in_radians(np.linspace(0, 255, 60).reshape(1, 3, 4, 5), "GE") is None
    assert phase_in_radians(np.linspace(0, 255, 60).reshape(1, 3, 4, 5), "Siemens") is None


def test_a_steep_field_is_not_taken_for_alternating_slices():
    ramp = np.exp(1j * np.arange(12) * 1.2)
    assert not slices_alternate(np.broadcast_to(ramp, (2, 5, 5, 12)))
    assert slices_alternate(np.broadcast_to((-1.0) ** np.arange(12) + 0j, (2, 5, 5, 12)))


def test_nothing_of_the_temporary_conversion_is_left(scans, tmp_path, monkeypatch):
    siemens(scans)
    monkeypatch.setattr(dicom.tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    convert(config(scans, mese=("none",)))
    assert list((tmp_path / "scratch").iterdir()) == []
