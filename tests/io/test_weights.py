from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from chisep.errors import InputError, OutputError
from chisep.io.weights import FORMAT, load_header, load_weights, save_weights

TENSORS = {
    "unet.weight": torch.randn(3, 2, 3, 3, 3, generator=torch.Generator().manual_seed(0)),
    "unet.special": torch.tensor([0.0, -0.0, float("inf"), 1e-45, 3.4e38]),
    "turned": torch.arange(12, dtype=torch.float64).reshape(3, 4).t(),
    "norm.count": torch.tensor(7),
    "alpha": torch.tensor(0.7),
    "half": torch.linspace(-1, 1, 5).bfloat16(),
}
HEADER = {
    "name": "χ-sepnet",
    "network": {"inputs": ["qsm"], "unrolled": None, "alpha": 4.0, "widths": [8, 16]},
    "metrics": {"validation_loss": 0.1 + 0.2},
    "finished": True,
}


@pytest.fixture
def path(tmp_path) -> Path:
    return save_weights(tmp_path / "weights.safetensors", TENSORS, HEADER)


def test_come_back_to_the_bit(path):
    tensors, header = load_weights(path)
    assert header == HEADER
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == tensor.shape
        raw, expected = (t.contiguous().flatten().view(torch.uint8) for t in (tensors[name], tensor))
        assert torch.equal(raw, expected)


def test_equal_weights_are_equal_files(path, tmp_path):
    again = save_weights(tmp_path / "again.safetensors", TENSORS, dict(reversed(HEADER.items())))
    assert again.read_bytes() == path.read_bytes()


def test_parameters_that_are_trained_are_written_without_their_graph(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2))
    tensors, _ = load_weights(save_weights(tmp_path / "w.safetensors", {"p": parameter * 2}, {}))
    assert torch.equal(tensors["p"], torch.full((2,), 2.0))


def test_header_is_read_without_the_weights(path):
    assert load_header(path) == HEADER


def test_nothing_else_is_left_in_the_folder(path):
    assert list(path.parent.iterdir()) == [path]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_truncated_files_are_refused(path, tmp_path, data):
    whole = path.read_bytes()
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    for read in (load_header, load_weights):
        with pytest.raises(InputError, match=r"broken\.safetensors"):
            read(broken)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_harmless(path, tmp_path, position, value):
    """Nothing but InputError comes out of a damaged file."""
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] = value
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(content)
    try:
        tensors, header = load_weights(broken)
    except InputError:
        return
    assert isinstance(header, dict)
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())


class Intruder:
    """What a pickle can do: it writes a file when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.write_text, (self.target, "code was run")


@pytest.mark.parametrize("write", ["pickle", "torch"])
def test_pickles_are_refused_unread(write, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "weights.safetensors"
    if write == "pickle":
        path.write_bytes(pickle.dumps(Intruder(marker)))
    else:
        torch.save({"state_dict": TENSORS, "extra": Intruder(marker)}, path)
    for read in (load_header, load_weights):
        with pytest.raises(InputError, match="chisep train"):
            read(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Intruder(marker)))
    assert marker.exists()


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "missing.safetensors", tmp_path):
        for read in (load_header, load_weights):
            with pytest.raises(InputError, match=str(path)):
                read(path)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "pt"},
        {"chisep-0": json.dumps(HEADER)},
        {FORMAT: "{half"},
        {FORMAT: "[1, 2]"},
    ],
)
def test_safetensors_of_other_programs_are_refused(metadata, tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(save({"weight": torch.ones(2)}, metadata=metadata))
    with pytest.raises(InputError, match="chisep weights"):
        load_weights(path)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        save_weights(tmp_path / "file" / "weights.safetensors", TENSORS, HEADER)
