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


@pytest.mark.parametrize("call", [["--help"], ["weights"], ["methods", "--json"], ["reproduce"]])
def test_commands_that_only_tell(offline, call):
    done = offline("-m", "chisep.cli", *call)
    assert done.returncode == (2 if call == ["reproduce"] else 0), done.stderr


def test_simulate_and_run(offline, tmp_path):
    raw, out = str(tmp_path / "raw"), str(tmp_path / "out")
    done = offline("-m", "chisep.cli", "simulate", raw, "--voxel-mm", "7", "--subjects", "2")
    assert done.returncode == 0, done.stderr
    done = offline(
        "-m", "chisep.cli", "run", raw, out, "--method", "closed-form", "--qsm", "tkd", "--workers", "1"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "sub-02.html").is_file()


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
