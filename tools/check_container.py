"""Run the RUN steps of the Dockerfile in a fresh folder, where there is no container engine.

Folders of the recipe (/src, /dist, /opt) become folders of the fresh one. The base image is not checked.
Usage: python tools/check_container.py [INDEX]: the package index of torch, that of the recipe if left out.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str]) -> int:
    """Run every step; the exit status is that of the first step that fails."""
    recipe = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    index = arguments[0] if arguments else re.findall(r"^ARG TORCH_INDEX=(\S+)", recipe, re.MULTILINE)[0]
    with tempfile.TemporaryDirectory(prefix="chisep-container-") as folder:
        source = Path(folder, "src")
        shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("README.md", "LICENSE", "pyproject.toml"):
            shutil.copy(ROOT / name, source / name)
        for step in re.findall(r"^RUN (.*)", recipe, re.MULTILINE):
            command = re.sub(r"(?<![\w/.])/(src|dist|opt)\b", rf"{folder}/\1", step)
            print(f"RUN {step}", flush=True)
            environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": folder, "TORCH_INDEX": index}
            command = re.sub(r"^python\b", sys.executable, command)
            Path(folder, "opt").mkdir(exist_ok=True)
            if status := subprocess.run(["sh", "-c", command], env=environment, check=False).returncode:
                return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
