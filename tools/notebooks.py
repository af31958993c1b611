"""Write a notebook for every script of `examples/`, without outputs.

The scripts have cells in the percent format: `# %%` starts code, `# %% [markdown]` starts text.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples"


def cells(script: str) -> list[dict[str, Any]]:
    """Cells of a script, in order."""
    found = []
    for number, part in enumerate(re.split(r"^# %%", script, flags=re.MULTILINE)[1:], start=1):
        head, _, body = part.partition("\n")
        is_text = head.strip() == "[markdown]"
        if is_text:
            body = re.sub(r"^# ?", "", body, flags=re.MULTILINE)
        cell: dict[str, Any] = {
            "cell_type": "markdown" if is_text else "code",
            "id": f"cell-{number}",
            "metadata": {},
            "source": body.strip().splitlines(keepends=True),
        }
        found.append(cell if is_text else cell | {"execution_count": None, "outputs": []})
    return found


def notebook(script: str) -> str:
    """Text of the notebook of a script."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {
        "cells": cells(script),
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Write the notebooks that differ from their script."""
    for script in sorted(EXAMPLES.glob("*.py")):
        text, path = notebook(script.read_text(encoding="utf-8")), script.with_suffix(".ipynb")
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
