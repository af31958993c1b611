"""Files of weights: any header, any offsets, any description of a network."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from chisep import methods
from chisep.api.weights import weight_cards
from chisep.errors import InputError
from chisep.io.weights import FORMAT, load_header, load_weights
from chisep.networks.inference import NetworkOptions
from chisep.networks.weights import WeightsConfig, load
from tests.hostile import datasets, images
from tests.hostile.conftest import cases
from tests.hostile.limits import CASES, ends_well
from tests.untrained import save_untrained


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = save_untrained(tmp_path_factory.mktemp("weights"), "unrolled-thesis")
    load(path)  # what PyTorch imports at its first use is not the memory of a case
    return path.read_bytes()


def split(whole):
    """Header as JSON has it, and the tensors' bytes."""
    length = int.from_bytes(whole[:8], "little")
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def joined(header: bytes, tensors: bytes, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + tensors


def read(path, content, target):
    """Read a file in all ways there are."""
    CASES[target] += 1
    path.write_bytes(content)
    header = ends_well(lambda: load_header(path), honest_bytes=len(content))
    tensors = ends_well(lambda: load_weights(path), honest_bytes=len(content))
    trained = ends_well(lambda: load(path), honest_bytes=len(content))
    if isinstance(header, InputError):
        assert isinstance(tensors, InputError)
    if isinstance(tensors, InputError):
        assert isinstance(trained, InputError)
    cards = ends_well(lambda: weight_cards(WeightsConfig(str(path))))
    assert isinstance(trained, InputError) or not isinstance(cards, InputError)
    options = NetworkOptions(weights=str(path), chi_weights=str(path))
    ends_well(lambda: methods.weights_used("unrolled-thesis", options, chi_given=True))
    return trained


@cases(40, 200)
@given(data=st.data())
def test_bent_files(whole, tmp_path, data):
    read(tmp_path / "w.safetensors", data.draw(images.bent(whole)), "weights, bytes")


_counts = st.one_of(st.integers(-1, 9), st.sampled_from([2**31, 2**62, 2**64 - 1, 2**64, -(2**63), 10**30]))
_types = st.sampled_from(
    ["F32", "F16", "BF16", "F8_E4M3", "F8_E8M0", "F4", "C64", "BOOL", "I64", "U64", "X", ""]
)
_tensor = st.fixed_dictionaries(
    {
        "dtype": _types,
        "shape": st.lists(_counts, max_size=5),
        "data_offsets": st.lists(_counts, min_size=2, max_size=2),
    }
)


@cases(40, 200)
@given(
    name=st.one_of(
        st.sampled_from(["", "..", "/etc/passwd", "unet.head.weight", "__metadata__"]), st.text(max_size=9)
    ),
    tensor=st.one_of(_tensor, datasets.values),
    length=st.one_of(st.none(), st.sampled_from([0, 1, 2**24, 2**25, 2**40, 2**63, 2**64 - 1])),
)
def test_layouts(whole, tmp_path, name, tensor, length):
    header, tensors = split(whole)
    header[name] = tensor
    content = joined(json.dumps(header).encode("utf-8", "surrogatepass"), tensors, length)
    read(tmp_path / "w.safetensors", content, "weights, layout")


_NETWORK = {
    "inputs": st.one_of(st.just(["field"]), st.just("field"), st.just([[]]), st.just(["field"] * 500)),
    "outputs": st.one_of(st.just(["chi"]), st.just([]), st.just(["x"])),
    "unet": st.one_of(
        st.fixed_dictionaries(
            {
                "widths": st.one_of(
                    st.lists(_counts, max_size=4),
                    st.sampled_from([[40_000, 40_000], [2000] * 8, [1] * 500, [0.5], ["a"], [True], None]),
                ),
                "norm": st.sampled_from(["batch", "none", "x", None, [], 10**6]),
            }
        ),
        datasets.values,
    ),
    "unrolled": st.one_of(
        st.none(),
        st.fixed_dictionaries(
            {"iterations": st.one_of(_counts, st.sampled_from([10**9, 0.5, "1"])), "alpha": datasets.values}
        ),
        datasets.values,
    ),
    "b0_along_z": datasets.values,
}


_of_network = [st.tuples(st.just(name), value) for name, value in _NETWORK.items()]
_of_card = st.tuples(
    st.sampled_from(["network", "statistics", "training_data", "metrics", "name", "x"]), datasets.values
)


@cases(60, 300)
@given(edits=st.lists(st.one_of(*_of_network), max_size=2), others=st.lists(_of_card, max_size=1))
def test_descriptions(whole, tmp_path, edits, others):
    """A header that chisep understands, but for some entries."""
    header, tensors = split(whole)
    card = json.loads(header["__metadata__"][FORMAT])
    card["network"] |= dict(edits)
    card |= dict(others)
    header["__metadata__"][FORMAT] = json.dumps(card)
    content = joined(json.dumps(header).encode(), tensors)
    read(tmp_path / "w.safetensors", content, "weights, description")


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 10, "null", "1", '{"network": {}}', "\ud800"])
def test_metadata_that_is_no_card(tmp_path, text):
    header = {"__metadata__": {FORMAT: text}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    content = joined(json.dumps(header).encode(), bytes(4))
    assert isinstance(read(tmp_path / "w.safetensors", content, "weights, layout"), InputError)


def test_a_large_file_with_a_small_header_is_fine(tmp_path):
    content = save({"a": torch.ones(1000)}, metadata={FORMAT: "{}"})
    (tmp_path / "w.safetensors").write_bytes(content)
    assert load_weights(tmp_path / "w.safetensors")[0]["a"].sum() == 1000
