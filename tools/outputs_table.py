"""Write the table of outputs in README.md from the catalogue of outputs.

python tools/outputs_table.py
"""

from __future__ import annotations

from pathlib import Path

from chisep.pipeline.outputs import OUTPUTS

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- outputs: python tools/outputs_table.py -->\n", "<!-- end of outputs -->\n"


def table() -> str:
    """Return the table as markdown: file, what it is, unit."""
    rows = [
        f"| `{output.name}{'' if output.extension == '.nii.gz' else output.extension}` "
        f"| {output.description} | {output.unit} |\n"
        for output in OUTPUTS.values()
    ]
    return "| file | what it is | unit |\n|---|---|---|\n" + "".join(rows)


def main() -> None:
    """Replace the table."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(START)
    README.write_text(before + START + table() + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
