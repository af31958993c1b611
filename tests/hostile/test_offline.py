"""Nothing here needs, or looks for, a network."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import chisep

PACKAGE = Path(chisep.__file__).parent
NETWORK = {
    *("requests", "urllib", "urllib.request", "urllib3", "http", "http.client", "httpx", "aiohttp"),
    *("socket", "ssl", "ftplib", "smtplib", "webbrowser", "huggingface_hub", "torch.hub", "pooch"),
}
ALLOWED = {
    ("io/files.py", "socket"): "the name of this machine, for the message of a lock",
    ("execution/clusters.py", "socket"): "whether this machine can reach itself, before workers are started",
}
_LOOPBACK = """
import array, fcntl, os, socket, struct, sys
with socket.socket() as s:  # a new namespace has its loopback switched off; workers of a cohort talk over it
    fcntl.ioctl(s, 0x8914, struct.pack("16sH14s", b"lo", 0x1 | 0x40, b""))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
_REFUSING = """
import socket
def refuse(self, address, *more):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise SystemExit(f"NETWORK: {address}")
    return plain(self, address, *more)
def lookup(host, *more, **options):
    if host not in (None, "", "localhost", "127.0.0.1", "::1"):
        raise SystemExit(f"NETWORK: {host}")
    return plain_lookup(host, *more, **options)
plain, plain_lookup = socket.socket.connect, socket.getaddrinfo
socket.socket.connect, socket.getaddrinfo = refuse, lookup
"""


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Run a command with the network cut: by a namespace where that is allowed, else by a guard in Python."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    unshare = shutil.which("unshare")
    if unshare and not subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode:
        start = [unshare, "-rn", sys.executable, "-c", _LOOPBACK]
    else:
        folder = tmp_path_factory.mktemp("site")
        (folder / "sitecustomize.py").write_text(_REFUSING)
        environment["PYTHONPATH"] = os.pathsep.join([str(folder), environment.get("PYTHONPATH", "")])
        start = [sys.executable]

    def run(*arguments):
        return subprocess.run(
            [*start, *arguments], env=environment, capture_output=True, text=True, check=False
        )

    probe = run("-c", "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)")
    assert probe.returncode != 0
    assert "timed out" not in probe.stderr, "the network is not cut"
    return run


@pytest.mark.parametrize(
    ("call", "status"), [(["--help"], 0), (["weights"], 0), (["methods", "--json"], 0), (["reproduce"], 2)]
)
def test_commands_that_only_print(offline, call, status):
    done = offline("-m", "chisep.cli", *call)
    assert done.returncode == status, done.stderr
    assert done.stdout


def test_run_with_workers(offline, raw_gradient_echo, tmp_path):
    """Two sessions, so that they run in worker processes, which talk to this one."""
    raw, out = Path(shutil.copytree(raw_gradient_echo, tmp_path / "raw")), tmp_path / "out"
    for path in (raw / "sub-01" / "anat").iterdir():  # the other session fails soon: its images are cut off
        twin = raw / "sub-02" / "anat" / path.name.replace("sub-01", "sub-02")
        twin.parent.mkdir(parents=True, exist_ok=True)
        twin.write_bytes(path.read_bytes()[:5000])
    options = ["--method", "closed-form", "--qsm", "tkd", "--mask.method", "threshold", "--workers", "1"]
    done = offline("-m", "chisep.cli", "run", str(raw), str(out), *options)
    assert done.returncode == 1, done.stderr
    assert "1 of 2 sessions failed" in " ".join(done.stderr.split())
    assert (out / "sub-01.html").is_file()


@pytest.mark.slow
def test_simulate(offline, tmp_path):
    done = offline("-m", "chisep.cli", "simulate", str(tmp_path / "raw"), "--voxel-mm", "7")
    assert done.returncode == 0, done.stderr


def imported(file: Path) -> set[str]:
    """Modules by their full names; `urllib.parse` only takes addresses apart."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_no_module_of_chisep_imports_what_speaks_to_a_network():
    used = {
        (str(file.relative_to(PACKAGE)), module)
        for file in PACKAGE.rglob("*.py")
        for module in imported(file) & NETWORK
    }
    assert used <= set(ALLOWED)
    # Functions of libraries that download.
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not [
            word
            for word in ("torch.hub", "fetch_atlas", "load_state_dict_from_url", "urlopen")
            if word in text
        ]
