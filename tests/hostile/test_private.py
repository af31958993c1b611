"""What must not leave: names of people, and code in texts. One run over a scan that is full of both."""

from __future__ import annotations

import gzip
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from chisep import cli
from chisep.io import bids
from chisep.io.weights import load_weights, save_weights
from chisep.report.pages import SCRIPTS, script
from tests.hostile.limits import CASES, names
from tests.untrained import save_untrained

SECRET = "Xq7Patient"
ATTACK = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'><a href='javascript:alert(2)'>b</a>"
ALLOWED = {
    *(
        "html",
        "head",
        "body",
        "meta",
        "title",
        "style",
        "header",
        "main",
        "nav",
        "section",
        "footer",
        "article",
    ),
    *(
        "figure",
        "figcaption",
        "img",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "colgroup",
        "col",
    ),
    *(
        "h1",
        "h2",
        "h3",
        "p",
        "ul",
        "ol",
        "li",
        "dl",
        "dt",
        "dd",
        "div",
        "span",
        "a",
        "strong",
        "b",
        "em",
        "i",
    ),
    "script",
    *("details", "summary", "code", "pre", "small", "br", "sub", "sup", "abbr"),
}


DATA = {"application/json", "application/octet-stream"}


@pytest.fixture(scope="module")
def raw(raw_session, tmp_path_factory) -> Path:
    """A scan that names a person, and attacks, in every text of its headers, sidecars and tables."""
    root = Path(shutil.copytree(raw_session, tmp_path_factory.mktemp("private") / "raw"))
    secrets = {
        key: f"{SECRET}{number}"
        for number, key in enumerate(
            (
                *(
                    "PatientName",
                    "PatientID",
                    "PatientBirthDate",
                    "AcquisitionDateTime",
                    "DeviceSerialNumber",
                ),
                *("InstitutionName", "InstitutionAddress", "StationName", "StudyID", "AccessionNumber"),
            )
        )
    }
    for image in sorted(root.glob("sub-01/anat/*.nii.gz")):
        sidecar = bids.sidecar_of(image)
        facts = json.loads(sidecar.read_text()) | secrets | {"Manufacturer": ATTACK, "ProtocolName": ATTACK}
        sidecar.write_text(json.dumps(facts))
        file = nib.load(image)
        file.header["descrip"] = file.header["aux_file"] = SECRET
        file.header["intent_name"], file.header["db_name"] = SECRET, SECRET
        file.header.extensions.append(nib.nifti1.Nifti1Extension("comment", SECRET.encode()))
        nib.save(nib.Nifti1Image(np.asanyarray(file.dataobj), file.affine, file.header), image)
    for name in ("dseg", "desc-brain_mask"):
        path = root / "derivatives" / "truth" / "sub-01" / "anat" / f"sub-01_{name}.nii.gz"
        file = nib.load(path)
        file.header["descrip"] = SECRET
        nib.save(nib.Nifti1Image(np.asanyarray(file.dataobj), file.affine, file.header), path)
    table = root / "derivatives" / "truth" / "dseg.tsv"
    index, *rows = table.read_text().splitlines()
    table.write_text("\n".join([index, *(row.split("\t")[0] + f"\t{ATTACK}" for row in rows)]) + "\n")
    description = root / "dataset_description.json"
    description.write_text(
        json.dumps(json.loads(description.read_text()) | {"Name": ATTACK, "Authors": [SECRET]})
    )
    (root / "participants.tsv").write_text(f"participant_id\tname\nsub-01\t{SECRET}\n")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    path = save_untrained(tmp_path_factory.mktemp("weights"), "unrolled-thesis")
    tensors, header = load_weights(path)
    header |= {"name": ATTACK, "licence_of_data": ATTACK}
    header["training_data"]["dataset"] = ATTACK
    return str(save_weights(path, tensors, header))


@pytest.fixture(scope="module")
def made(raw, weights, tmp_path_factory) -> Path:
    """OUT of a run over it, and of the group level."""
    out = tmp_path_factory.mktemp("made") / "out"
    call = ["run", str(raw), str(out)]
    options = ["--method", "unrolled-thesis", "--weights", weights, "--qsm", "tkd"]
    options += ["--r2.method", "exponential", "--masks", str(raw / "derivatives" / "truth")]
    assert cli.main([*call, "participant", *options]) == 0
    assert cli.main([*call, "group"]) == 0
    return out


def test_nothing_tells_who_was_scanned(raw, made):
    CASES["identifiers"] += 1
    assert SECRET.encode() in gzip.decompress(next(raw.glob("sub-01/anat/*.nii.gz")).read_bytes())
    files = [path for path in names(made) if path.is_file()]
    assert [path for path in files if path.suffix == ".html"]
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content += gzip.decompress(content)
        assert SECRET.encode() not in content, path
        assert SECRET not in path.name


class Tags(HTMLParser):
    """Tags and attributes as a browser sees them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.code: list[str] = []
        self._runs = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        # Of another type it is data, which no browser runs.
        self._runs = tag == "script" and dict(attrs).get("type") not in DATA

    def handle_endtag(self, tag):
        self._runs = False

    def handle_data(self, data):
        if self._runs:
            self.code.append(data)


def test_pages_hold_no_foreign_code(made):
    pages = [path for path in names(made) if path.suffix == ".html"]
    assert pages
    quoted = False
    for page in pages:
        CASES["pages"] += 1
        text = page.read_text(encoding="utf-8")
        quoted |= "&lt;script&gt;" in text
        read = Tags(text)
        assert set(read.code) <= {script(name) for name in SCRIPTS}, page
        for tag, attributes in read.found:
            assert tag in ALLOWED, (page, tag)
            assert not [name for name in attributes if name.startswith("on")], page
            for name in ("src", "href"):
                value = attributes.get(name) or "#"
                assert value.startswith(("#", "data:image/", "./", "sub-")) or "//" not in value, (
                    page,
                    value,
                )
                assert ":" not in value or value.startswith("data:image/"), (page, value)
    assert quoted, "the attack reached no page: this test says nothing"


def test_links_in_out_are_not_written_through(raw, tmp_path):
    """Folders of OUT that lead elsewhere, and a lock that is a link to a file of the user's."""
    for name in ("sub-01", "sub-01/anat", ".chisep", ".chisep/sub-01"):
        CASES["links in OUT"] += 1
        out, elsewhere = (
            tmp_path / name.replace("/", "-") / "out",
            tmp_path / name.replace("/", "-") / "elsewhere",
        )
        elsewhere.mkdir(parents=True)
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).symlink_to(elsewhere)
        assert cli.main(["run", str(raw), str(out), "--method", "closed-form", "--qsm", "tkd"]) == 1
        assert not list(elsewhere.iterdir()), name
    CASES["links in OUT"] += 1
    out, precious = tmp_path / "lock" / "out", tmp_path / "precious"
    precious.write_text("mine")
    (out / ".chisep").mkdir(parents=True)
    (out / ".chisep" / "lock").symlink_to(precious)
    assert cli.main(["run", str(raw), str(out), "--method", "closed-form", "--qsm", "tkd"]) == 1
    assert precious.read_text() == "mine"
