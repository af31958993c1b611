"""NIfTI files that are wrong in one place or many: headers of any numbers, streams that are cut or bent."""

from __future__ import annotations

import gzip
from contextlib import suppress

import nibabel as nib
import numpy as np
from hypothesis import strategies as st

SHAPE = (3, 4, 5)
_AFFINE = np.array([[1.0, 0, 0, -5], [0, 0.8, 0, 3], [0, 0, 2, 7], [0, 0, 0, 1]])
_KINDS = (nib.Nifti1Image, nib.Nifti2Image)


def whole(kind: type[nib.Nifti1Image] = nib.Nifti1Image, dtype: str = "int16") -> bytes:
    """A file without a fault."""
    return kind(np.arange(60, dtype=dtype).reshape(SHAPE), _AFFINE).to_bytes()


_floats = st.floats(width=32)
_small = st.integers(-2, 9)
_int16 = st.integers(-(2**15), 2**15 - 1)
_dims = st.lists(st.one_of(_small, _int16, st.just(32767)), min_size=8, max_size=8)
_types = st.one_of(
    st.sampled_from([0, 1, 2, 4, 8, 16, 32, 64, 128, 255, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304]),
    _int16,
)
_code = st.one_of(_small, _int16)
_FIELDS = {
    "sizeof_hdr": st.one_of(st.just(540), st.integers(-(2**31), 2**31 - 1)),
    "dim": _dims,
    "datatype": _types,
    "bitpix": _code,
    "vox_offset": st.one_of(_floats, st.sampled_from([0.0, 1.0, 347.0, 352.0, 353.0, 544.0, 1e6, 1e30])),
    "scl_slope": _floats,
    "scl_inter": _floats,
    "pixdim": st.lists(st.one_of(_floats, st.sampled_from([-1.0, 0.0, 1e-30])), min_size=8, max_size=8),
    "qform_code": _code,
    "sform_code": _code,
    "quatern_b": _floats,
    "quatern_c": _floats,
    "quatern_d": _floats,
    "qoffset_x": _floats,
    "srow_x": st.lists(_floats, min_size=4, max_size=4),
    "srow_y": st.lists(_floats, min_size=4, max_size=4),
    "srow_z": st.lists(_floats, min_size=4, max_size=4),
    "magic": st.sampled_from([b"n+1\0", b"ni1\0", b"n+2\0", b"\0\0\0\0", b"N+1\0", b"n+1 "]),
    "intent_code": _code,
    "xyzt_units": st.integers(0, 255),
    "descrip": st.binary(max_size=80),
}


@st.composite
def headers(draw) -> bytes:
    """A whole file, some fields of its header replaced, in either byte order."""
    kind = draw(st.sampled_from(_KINDS))
    content = whole(kind, draw(st.sampled_from(["uint8", "int16", "float32", "float64"])))
    header = kind.header_class(content[: kind.header_class.template_dtype.itemsize], check=False)
    if draw(st.booleans()):
        header = header.as_byteswapped(">")
    fields = draw(st.lists(st.sampled_from(sorted(_FIELDS)), min_size=1, max_size=4, unique=True))
    with np.errstate(all="ignore"):
        for name in fields:
            value = draw(_FIELDS[name])
            # What the field cannot hold, or NIfTI-2 has no such field: left as it is.
            with suppress(OverflowError, ValueError, KeyError):
                header[name] = value
    flag = draw(st.one_of(st.just(b"\0\0\0\0"), st.binary(min_size=4, max_size=4)))
    end = kind.header_class.template_dtype.itemsize + 4
    extension = draw(st.sampled_from([b"", b"\x10\0\0\0\x04\0\0\0" + b"x" * 8, b"\xff" * 16, b"\0" * 16]))
    voxels = content[end:]
    rest = draw(st.sampled_from([voxels, voxels[:-1], b"", voxels * 2]))
    return header.binaryblock + flag + extension + rest


@st.composite
def bent(draw, content: bytes) -> bytes:
    """A file with bytes flipped, cut out, doubled or added."""
    bad = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(bad) - 1, 0)))
        match draw(st.sampled_from(["flip", "cut", "drop", "double", "add"])):
            case "flip" if bad:
                bad[place] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del bad[place:]
            case "drop":
                del bad[place : place + draw(st.integers(1, 64))]
            case "double":
                bad[place:place] = bad[place : place + 64]
            case _:
                bad += draw(st.binary(max_size=64))
    return bytes(bad)


def members(content: bytes, copies: int, zeros: int) -> bytes:
    """A gzip stream of a file, then `copies` members of `zeros` zero bytes each."""
    return gzip.compress(content) + copies * gzip.compress(bytes(zeros))
