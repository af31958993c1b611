"""Weights that cannot be right are refused; those that come with chisep are compared with their checksums."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from chisep.errors import InputError
from chisep.io.files import checksum
from chisep.io.weights import load_weights, save_weights
from chisep.networks import weights
from tests.untrained import save_untrained

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_value_that_is_no_number_is_refused_with_its_tensor(tmp_path, value):
    tensors, header = load_weights(save_untrained(tmp_path, "unrolled"))
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name].view(-1)[3] = value
    path = save_weights(tmp_path / "broken.safetensors", tensors, header)
    with pytest.raises(InputError, match=r"broken\.safetensors: found tensor .*1 of \d+ values") as caught:
        weights.load(path)
    assert name in str(caught.value)


def test_numbers_too_large_for_the_network_are_refused(tmp_path):
    tensors, header = load_weights(save_untrained(tmp_path, "qsmnet"))
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name] = torch.full_like(tensors[name], 1e300, dtype=torch.float64)
    with pytest.raises(InputError, match="NaN or infinite"):
        weights.load(save_weights(tmp_path / "large.safetensors", tensors, header))


class TestChecksums:
    def test_the_list_is_that_of_the_files(self):
        files = weights.shipped().values()
        assert {path.name: checksum(path) for path in files} == weights.checksums()

    def test_sha256sum_reads_it(self):
        folder = weights.SHA256SUMS.parent
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)

    @pytest.fixture
    def copy(self, tmp_path, monkeypatch) -> Path:
        folder = tmp_path / "shipped"
        shutil.copytree(weights.SHA256SUMS.parent, folder)
        monkeypatch.setattr(weights, "_SHIPPED", folder)
        monkeypatch.setattr(weights, "SHA256SUMS", folder / "SHA256SUMS")
        return folder

    def test_a_changed_byte_is_refused(self, copy):
        weights.load("r2s")
        path = copy / "r2s.safetensors"
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"r2s\.safetensors: found other weights.*SHA-256"):
            weights.load("r2s")

    def test_weights_that_are_not_listed_are_refused(self, copy):
        shutil.copy(copy / "r2s.safetensors", copy / "more.safetensors")
        with pytest.raises(InputError, match="a line in SHA256SUMS"):
            weights.load("more")

    def test_they_are_computed_once(self, copy, monkeypatch):
        paths = []
        monkeypatch.setattr(weights, "checksum", lambda path: paths.append(path) or checksum(path))
        for _ in range(3):
            weights.load("r2s")
        assert paths == [copy / "r2s.safetensors"]

    def test_weights_of_users_are_not_compared(self, copy, tmp_path):
        content = (copy / "r2s.safetensors").read_bytes()
        own = tmp_path / "r2s.safetensors"
        own.write_bytes(content)
        (copy / "SHA256SUMS").write_text("")
        assert weights.load(own).config.outputs == ("r2prime",)


def test_what_follows_from_the_weights_is_up_to_date():
    spec = importlib.util.spec_from_file_location("shipped_weights", ROOT / "tools" / "shipped_weights.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.outdated(write=False) == []
