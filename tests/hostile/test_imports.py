"""`chisep import` and `chisep dicom`: what they are given, and where they write."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chisep.errors import ChisepError, InputError, OutputError
from chisep.io import discovery, nifti
from chisep.io.ingest import dicom
from chisep.io.ingest import nifti as importing
from chisep.io.ingest.dicom import DicomConfig
from tests.hostile import datasets
from tests.hostile.conftest import cases
from tests.hostile.limits import CASES, ends_well, names, nothing_half_written

SHAPE = (4, 5, 6, 3)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name in ("mag", "phase"):
        nifti.save(folder / f"{name}.nii.gz", np.random.default_rng(0).uniform(size=SHAPE), datasets.AFFINE)
    return folder


_times = st.one_of(
    st.just(datasets.TE_S), st.lists(st.one_of(st.floats(), st.floats(0, 0.3)), max_size=4).map(tuple)
)


@cases(60, 300)
@given(
    subject=st.one_of(st.just("01"), datasets.labels),
    te=_times,
    b0=st.one_of(st.just(3.0), st.floats()),
    te_spin_echo=st.one_of(st.just(()), _times),
)
def test_anything_imported_is_a_dataset_or_nothing(files, tmp_path, subject, te, b0, te_spin_echo):
    CASES["chisep import"] += 1
    out = tmp_path / "in" / "bids"
    before = names(tmp_path) - names(out)

    def import_session():
        spin_echo = (files / "mag.nii.gz",) if te_spin_echo else ()
        config = importing.ImportConfig(
            out, (files / "mag.nii.gz",), (files / "phase.nii.gz",), te, b0, spin_echo, te_spin_echo, subject
        )
        return importing.import_session(config)

    written = ends_well(import_session)
    assert names(tmp_path) - names(out) - {out, out.parent} <= before
    nothing_half_written(tmp_path)
    if not isinstance(written, InputError):
        assert ends_well(lambda: discovery.find_sessions(out, [subject]))[0].subject == subject
        for file in written:
            nifti.load(file)
            file.unlink()


def test_links_are_not_written_through(files, tmp_path):
    """A participant's folder that leads elsewhere."""
    CASES["links in OUT"] += 1
    out, elsewhere = tmp_path / "bids", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "sub-01").symlink_to(elsewhere)
    config = importing.ImportConfig(
        out, (files / "mag.nii.gz",), (files / "phase.nii.gz",), datasets.TE_S, 3.0, subject="01"
    )
    with pytest.raises(OutputError, match="symbolic link"):
        importing.import_session(config)
    assert not list(elsewhere.iterdir())


_vendor_facts = st.fixed_dictionaries(
    {},
    optional={
        "SeriesNumber": st.one_of(st.integers(0, 3), datasets.values),
        "EchoTime": st.one_of(st.sampled_from([0.005, 0.01, 0.02]), datasets.values),
        "ImageType": st.one_of(
            st.sampled_from([["M"], ["P", "PHASE"], ["REAL"], ["IMAGINARY"], "PHASE"]), datasets.values
        ),
        "ScanningSequence": st.one_of(st.sampled_from(["GR", "SE", "EP", "GR_IR"]), datasets.values),
        "ProtocolName": st.one_of(st.sampled_from(["gre", "se"]), datasets.values),
        "SeriesDescription": datasets.values,
        "Manufacturer": st.one_of(st.sampled_from(["Siemens", "GE", "Philips"]), datasets.values),
        "RepetitionTime": datasets.values,
        "FlipAngle": datasets.values,
        "PatientName": st.just("Secret^Name"),
    },
)


@cases(60, 300)
@example(facts=[b'{"ScanningSequence": 1' + 3000 * b"0" + b"}"], patterns=())
@example(facts=[b'{"SeriesNumber": 1' + 3000 * b"0" + b"}"], patterns=())
@given(
    facts=st.lists(
        st.one_of(_vendor_facts.map(lambda f: json.dumps(f).encode()), datasets.sidecars()), max_size=8
    ),
    patterns=st.lists(st.sampled_from(["1", "*", "gre*", "[", "none", "9" * 5000]), max_size=2).map(tuple),
)
def test_what_a_converter_may_write(files, tmp_path, monkeypatch, facts, patterns):
    """Sidecars of any content beside images, as dcm2niix leaves them, through all that comes after it.

    The program that stands for dcm2niix copies them to the folder that it is given.
    """
    CASES["converted DICOM"] += 1
    made, out = tmp_path / "made", tmp_path / "bids"
    for folder in (made, out):
        datasets.shutil.rmtree(folder, ignore_errors=True)
    made.mkdir()
    volume = nifti.load(files / "mag.nii.gz", ndim=4).data
    for number, content in enumerate(facts):
        nifti.save(made / f"{number}.nii", volume[..., number % 3], datasets.AFFINE)
        (made / f"{number}.json").write_bytes(content)
    program = tmp_path / "converter"
    program.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ncp {made}/* "$2"\nexit 0\n')
    program.chmod(0o755)
    monkeypatch.setattr(dicom, "_executable", lambda: str(program))
    ends_well(lambda: dicom.convert(DicomConfig(made, out, "01", megre=patterns)))
    nothing_half_written(tmp_path)
    for file in out.rglob("*"):
        if file.is_file():
            assert b"Secret" not in file.read_bytes()


@cases(20, 100)
@given(participant=datasets.labels, session=datasets.labels)
def test_labels_of_dicom_sessions(tmp_path, participant, session):
    CASES["labels asked for"] += 1
    config = ends_well(lambda: DicomConfig(tmp_path, tmp_path / "bids", participant, session))
    if not isinstance(config, ChisepError):
        assert config.participant.isalnum()
        assert all(getattr(config, f.name) is not None for f in fields(config))
