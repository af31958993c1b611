"""Structure of the package in numbers: modules, imports between packages, layers, longest file and function.

    python tools/structure.py [SRC]

SRC is the folder that holds the package `chisep` (default: src). Prints JSON.
"""

from __future__ import annotations

import ast
import json
import sys
import tomllib
from pathlib import Path


def package_of(module: str) -> str:
    """Package, or top-level module, of a dotted name: chisep.io.nifti → io."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def main() -> None:
    """Measure and print."""
    src = Path(sys.argv[1] if len(sys.argv) > 1 else "src")
    files = sorted((src / "chisep").rglob("*.py"))
    modules = {
        ".".join(path.relative_to(src).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
    }
    imports: set[tuple[str, str]] = set()
    between: set[tuple[str, str]] = set()
    functions: list[tuple[int, str]] = []
    for module, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            targets: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "chisep":
                for name in node.names:
                    full = f"{node.module}.{name.name}"
                    targets.append(full if full in modules else node.module)
            elif isinstance(node, ast.Import):
                targets = [name.name for name in node.names if name.name.split(".")[0] == "chisep"]
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.append((node.end_lineno - node.lineno + 1, f"{module}.{node.name}"))  # type: ignore[operator]
            for target in targets:
                imports.add((module, target))
                pair = package_of(module), package_of(target)
                if all(pair) and pair[0] != pair[1]:
                    between.add(pair)
    lines = sorted(
        (len(path.read_text(encoding="utf-8").splitlines()), name) for name, path in modules.items()
    )
    contract = tomllib.loads((src.parent / "pyproject.toml").read_text(encoding="utf-8"))
    layers = contract["tool"]["importlinter"]["contracts"][0]["layers"]
    functions.sort()
    found = {
        "modules": len(modules),
        "packages_and_top_level_modules": len({package_of(name) for name in modules} - {""}),
        "imports_between_modules": len(imports),
        "imports_between_packages": len(between),
        "layers": len(layers),
        "lines": sum(number for number, _ in lines),
        "longest_file": lines[-1],
        "files_over_500_lines": sum(number > 500 for number, _ in lines),
        "longest_function": functions[-1],
        "functions_over_60_lines": sum(number > 60 for number, _ in functions),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
