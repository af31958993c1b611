"""Writes the corpus; `python -m tests.hostile.make_corpus` makes it anew."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.hostile import images
from tests.hostile.test_nifti import declared

CORPUS = Path(__file__).parent / "corpus"


def changed(**fields: object) -> bytes:
    """A whole NIfTI file but for some fields of its header."""
    content = images.whole()
    header = nib.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + content[348:]


def weights(card: object, tensors: dict[str, object], length: int | None = None, data: int = 4) -> bytes:
    """A file of weights with such a card and such tensors."""
    text = json.dumps({"__metadata__": {"chisep-1": json.dumps(card)}, **tensors}).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data)


ONE = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
NET = {"inputs": ["field"], "outputs": ["chi"], "unet": {"widths": [4], "norm": "batch"}, "unrolled": None}
STATISTICS = {"field": [0, 1], "chi": [0, 1]}

FILES: dict[str, tuple[bytes, str]] = {
    "good-members.nii.gz": (
        gzip.compress(images.whole()[:100], mtime=0) + gzip.compress(images.whole()[100:], mtime=0),
        "two gzip members, one image",
    ),
    "good-spare.nii": (images.whole() + bytes(1000), "some bytes after the image"),
    "offset-nan.nii": (
        changed(vox_offset=np.nan),
        "voxels start at NaN: an `OverflowError` or `ValueError` deep inside",
    ),
    "offset-infinite.nii": (changed(vox_offset=np.inf), "voxels start at infinity"),
    "offset-header.nii": (changed(vox_offset=0, magic=b"ni1"), "voxels would be the header itself"),
    "offset-far.nii.gz": (gzip.compress(changed(vox_offset=1e30), mtime=0), "voxels start beyond any file"),
    "dims-negative.nii": (changed(dim=[3, -3, 4, 5, 1, 1, 1, 1]), "a negative size"),
    "dims-eight.nii": (changed(dim=[8, 3, 4, 5, 1, 1, 1, 1]), "eight axes"),
    "dims-none.nii": (changed(dim=[0, 3, 4, 5, 1, 1, 1, 1]), "no axes"),
    "dims-huge.nii.gz": (
        gzip.compress(declared((32767, 32767, 32767)), mtime=0),
        "35 TB declared in 100 bytes",
    ),
    "dims-long.nii.gz": (gzip.compress(declared((1500, 1000, 1000)), mtime=0), "1.5 GB declared, no voxels"),
    "type-complex.nii": (
        nib.Nifti1Image(np.ones((3, 3, 3), np.complex64), np.eye(4)).to_bytes(),
        "the imaginary part would be lost",
    ),
    "type-colour.nii": (changed(datatype=128, bitpix=24), "colours: a `TypeError`"),
    "type-unknown.nii": (changed(datatype=77), "a number type that does not exist"),
    "good-slope-infinite.nii": (changed(scl_slope=np.inf), "a slope that is none: stored numbers are values"),
    "slope-overflow.nii": (changed(scl_slope=3e38), "values overflow 32 bits: a `RuntimeWarning`"),
    "voxel-giant.nii": (changed(srow_x=[1e30, 0, 0, 0], sform_code=1), "voxels of 10³⁰ mm"),
    "voxel-flat.nii": (changed(srow_z=[1, 0, 0, 0], srow_x=[1, 0, 0, 0], sform_code=1), "axes in a plane"),
    "affine-nan.nii": (changed(srow_y=[np.nan] * 4, sform_code=1), "an affine that is not a number"),
    "bomb.nii.gz": (images.members(images.whole(), 2, 2**24), "32 MB after an image of 60 voxels"),
    "no-checksum.nii.gz": (gzip.compress(images.whole(), mtime=0)[:-8], "the end of the stream is missing"),
    "wrong-checksum.nii.gz": (gzip.compress(images.whole(), mtime=0)[:-8] + bytes(8), "a wrong checksum"),
    "good-mark.json": (
        b"\xef\xbb\xbf" + json.dumps({"EchoTime": 0.011, "MagneticFieldStrength": 3}).encode(),
        "a byte-order mark, as editors of Windows leave it",
    ),
    "deep.json": (b"[" * 50_000, "50 000 brackets: a `RecursionError`"),
    "digits.json": (
        b'{"EchoTime": 1' + b"0" * 400 + b"}",
        "an echo time too large for a float: an `OverflowError` in the message",
    ),
    "no-number.json": (b'{"EchoTime": NaN, "MagneticFieldStrength": 3}', "an echo time of NaN"),
    "half-character.json": (
        b'{"EchoTime": 0.011, "MagneticFieldStrength": 3, "Units": "\\ud800"}',
        "half a character that no UTF-8 file can hold: a `UnicodeEncodeError` when written to a sidecar",
    ),
    "object-units.json": (
        b'{"EchoTime": 0.011, "MagneticFieldStrength": 3, "Units": {"a": 1}}',
        "units that are an object",
    ),
    "latin.json": ('{"EchoTime": 0.011, "Manufacturer": "é"}'.encode("latin-1"), "not UTF-8"),
    "empty.json": (b"", "nothing"),
    "list.json": (
        b"[1]",
        "a list: an `AttributeError` of the former reader of datasets, were it the description",
    ),
    "header-long.safetensors": (weights({}, ONE, length=2**40), "a header of a terabyte"),
    "header-deep.safetensors": (
        weights({}, ONE).replace(b'"{}"', b'"' + b"[" * 20_000 + b'"'),
        "a header that ends early",
    ),
    "card-none.safetensors": (weights({"network": {}}, ONE), "a card without what it needs"),
    "card-huge.safetensors": (
        weights(
            {
                "network": NET | {"unet": {"widths": [40_000, 40_000], "norm": "batch"}},
                "statistics": STATISTICS,
            },
            ONE,
        ),
        "a network of 170 GB described in 400 bytes: built before it was compared with the file",
    ),
    "card-deep.safetensors": (
        weights(
            {"network": NET | {"unet": {"widths": [1] * 5000, "norm": "batch"}}, "statistics": STATISTICS},
            ONE,
        ),
        "a network of 5000 levels",
    ),
    "card-digits.safetensors": (
        weights({"network": NET, "statistics": STATISTICS | {"chi": [10**400, 1]}}, ONE),
        "statistics too large for a float",
    ),
    "card-text.safetensors": (
        weights({"network": NET, "statistics": STATISTICS, "training_data": "heads"}, ONE),
        "training data told in another way: an `AttributeError`",
    ),
    "names.txt": (
        json.dumps(
            [
                "../../etc",
                "..",
                ".",
                "",
                " ",
                "/etc",
                "a/b",
                "a\\b",
                "a b",
                "a\nb",
                "\x1b[31m",
                "\0",
                "x" * 300,
                "é",
                "٣",
                "a_b",
                "a-b",
                "-",
            ]
        ).encode(),
        "labels of participants that were asked for",
    ),
}

if __name__ == "__main__":
    CORPUS.mkdir(exist_ok=True)
    for name, (content, _) in FILES.items():
        (CORPUS / name).write_bytes(content)
    rows = [f"| `{name}` | {len(content)} | {why} |" for name, (content, why) in FILES.items()]
    (CORPUS / "README.md").write_text(
        "# Seed corpus\n\nMade by `python -m tests.hostile.make_corpus`, read by `test_corpus.py`.\n\n"
        "| file | bytes | what is wrong, and what it led to |\n|---|---|---|\n" + "\n".join(rows) + "\n",
        encoding="utf-8",
    )
