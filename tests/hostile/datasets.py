"""A tiny BIDS dataset to spoil, and texts that spoil it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from chisep.io import bids, nifti

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
TE_S = (0.005, 0.011, 0.017)


def write_dataset(root: Path) -> Path:
    """One participant, three echoes, magnitude and phase; no brain in it."""
    root.mkdir(parents=True)
    bids.write_dataset_description(root, "test")
    for number, te_s in enumerate(TE_S, start=1):
        for part in ("mag", "phase"):
            path = bids.raw_path(root, "01", "MEGRE", echo=number, part=part)
            nifti.save(path, np.ones((3, 3, 3)), AFFINE)
            facts = {"EchoTime": te_s, "MagneticFieldStrength": 3.0}
            bids.sidecar_of(path).write_text(
                json.dumps(facts | ({"Units": "rad"} if part == "phase" else {}))
            )
    return root


def renewed(root: Path, whole: Path) -> Path:
    """A copy of a dataset in place of what is there."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(whole, root)
    return root


_numbers = st.one_of(
    st.floats(),
    st.integers(),
    st.sampled_from([0, -1, 1e308, 5e-324, 10**400, 10**4000, -(10**400), 2**63, float("nan"), float("inf")]),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), _numbers, st.text(max_size=40)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
"""What JSON can say, numbers of all sizes and lone surrogates included."""
_FIELDS = ("EchoTime", "MagneticFieldStrength", "Units", "B0DirectionVoxelAxes", "EchoNumber", "")
_sensible = st.one_of(
    st.sampled_from([0.005, 0.011, 3.0, 5, "rad", "arbitrary", [0, 0.6, 0.8], [0, 0, 0], "123", {"a": 1}]),
    st.lists(_numbers, min_size=3, max_size=3),
)
facts = st.dictionaries(
    st.one_of(st.sampled_from(_FIELDS), st.text(max_size=8)), st.one_of(_sensible, values), max_size=6
)


@st.composite
def sidecars(draw) -> bytes:
    """Bytes of a JSON file: sensible, silly, or not JSON at all."""
    text = json.dumps(draw(st.one_of(facts, values)))
    match draw(st.sampled_from(["as it is", "as it is", "encoded", "mark", "deep", "cut", "twice", "any"])):
        case "encoded":
            return text.encode(draw(st.sampled_from(["utf-16", "utf-32-be", "utf-7"])), "surrogatepass")
        case "mark":
            return b"\xef\xbb\xbf" + text.encode()
        case "deep":
            depth = draw(st.sampled_from([50, 999, 3000, 200_000]))
            opening, closing = draw(st.sampled_from([("[", "]"), ('{"a":', "}")]))
            return (opening * depth + "1" + closing * draw(st.sampled_from([0, depth]))).encode()
        case "cut":
            return text.encode()[: draw(st.integers(0, len(text)))]
        case "twice":
            return (text + text).encode()
        case "any":
            return draw(st.binary(max_size=100))
    return text.encode()


_bad_parts = st.sampled_from(
    [
        *(
            "..",
            ".",
            "",
            " ",
            "01",
            "A",
            "é",
            "日本",
            "a b",
            "a\nb",
            "\x1b[31mred",
            "a\x00b",
            "-",
            "+",
            "sub-01",
        ),
        *("x" * 60, "x" * 250, "%s", "$(id)", "`id`", "<script>", "'\"", "01_02", "01-02", "NUL", "‮abc", "٣"),
        "\udcff",
    ]
)
labels = st.one_of(_bad_parts, st.text(max_size=6))


def usable_name(text: str) -> bool:
    """Whether a file system takes it as the name of a file."""
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return 0 < len(encoded) <= 255 and not {"/", "\0"} & set(text) and text not in (".", "..")
