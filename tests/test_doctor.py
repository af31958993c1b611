"""The check of an installation: faults are found, and the self-test is a real one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import chisep.doctor
from chisep import cli
from chisep.doctor import DoctorConfig, doctor
from chisep.networks.weights import checksums


def levels(**options) -> dict[str, str]:
    return {f.check: f.level for f in doctor(DoctorConfig(self_test=False, **options))}


def test_a_sound_installation(tmp_path, capsys):
    found = levels(out=tmp_path / "not" / "yet")
    assert {"chisep", "libraries", "processor", "GPU", "memory", "disk", "weights"} <= set(found)
    assert "fault" not in found.values()
    assert not (tmp_path / "not").exists()
    assert cli.main(["doctor", "--no-self-test", "--json"]) == 0
    assert {one["check"] for one in json.loads(capsys.readouterr().out)} == set(found)


def test_changed_weights_are_a_fault(monkeypatch, capsys):
    listed = checksums()
    name = next(iter(listed))
    monkeypatch.setattr(chisep.doctor, "checksums", lambda: listed | {name: "0" * 64})
    assert cli.main(["doctor", "--no-self-test"]) == 1
    assert name in capsys.readouterr().out


def test_too_little_of_everything_is_a_notice(monkeypatch):
    monkeypatch.setattr(chisep.doctor, "SESSION_GB", 1e9)
    monkeypatch.setattr(chisep.doctor, "_LEAST_SESSIONS", 1e12)
    found = levels()
    assert found["memory"] == found["disk"] == "notice"


def test_what_a_session_takes_is_what_was_measured():
    results = Path(__file__).parents[1] / "benchmarks/results"
    planning, session = (json.loads((results / f"{n}.json").read_text()) for n in ("planning", "session"))
    assert pytest.approx(planning["session"]["bytes"] / 1e9, abs=0.005) == chisep.doctor._RESULTS_GB
    assert session["peak_gb"] < chisep.doctor.SESSION_GB < 1.5 * session["peak_gb"]


def test_no_gpu_where_one_is_asked_for(monkeypatch):
    monkeypatch.setattr(chisep.doctor.torch.cuda, "device_count", lambda: 0)
    assert levels(device="cuda")["GPU"] == "fault"
    assert levels()["GPU"] == "good"


@pytest.mark.slow
def test_self_test(monkeypatch, tmp_path):
    monkeypatch.setattr(chisep.doctor.tempfile, "tempdir", str(tmp_path))
    (finding,) = [f for f in doctor(DoctorConfig()) if f.check == "self-test"]
    assert finding.level == "good", finding.found
    # PyTorch may leave its own empty cache folder.
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith("torchinductor")]
    monkeypatch.setattr(chisep.doctor, "_LARGEST_NRMSE_PERCENT", 1.0)
    (finding,) = [f for f in doctor(DoctorConfig()) if f.check == "self-test"]
    assert finding.level == "fault"
