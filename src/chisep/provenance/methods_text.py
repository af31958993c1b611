"""Methods section of a paper, from the records of a run, with the works to cite.

The text uses records, sidecars and image headers only, and names what they do not state. A table has every
item of the reporting list of the QSM consensus (Bilgic 2024, 10.1002/mrm.30006), filled in or marked as not
stated. Sentences that differ between sessions name their sessions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from chisep.errors import InputError
from chisep.io.files import write_text
from chisep.provenance.citations import references
from chisep.provenance.sentences import SECTIONS, limits_text, spread_sentences
from chisep.provenance.session_facts import (
    SessionFacts,
    merged,
    read_session_facts,
    versions,
)
from chisep.provenance.tables import parameter_rows, reporting_rows, table
from chisep.provenance.values import (
    NOT_RECORDED,
    counted,
    enumerated,
    escaped,
)

_MOST_WARNINGS = 10


_LIBRARIES = {
    "torch": "PyTorch [@paszke2019]",
    "numpy": "NumPy [@harris2020]",
    "scipy": "SciPy [@virtanen2020]",
    "scikit-image": "scikit-image [@vanderwalt2014]",
    "nibabel": "nibabel",
}


METHODS_FILE = "methods.md"


def write_methods(out: Path, raw: Path | None = None) -> tuple[Path, Path]:
    """Write the methods section of a paper from the records of all sessions.

    Parameters
    ----------
    out
        Derivatives dataset of `chisep run`.
    raw
        Raw dataset, if it was moved after the run.

    Returns
    -------
    tuple of Path
        OUT/methods.md, with citations as `[@key]`, and OUT/references.bib with the works cited.

    Raises
    ------
    InputError
        If there are no records.

    Warns
    -----
    ChisepWarning
        If sessions are left out because their records or sidecars cannot be read.
    """
    sessions = list(read_session_facts(out, raw))
    if not sessions:
        raise InputError(
            out,
            found="no record of a finished session",
            expected="a derivatives dataset that `chisep run` made",
            fix="Name the folder that was OUT of `chisep run`.",
        )
    text = methods_text(sessions)
    return write_text(out / METHODS_FILE, text), write_text(out / "references.bib", references(text))


def methods_text(sessions: Sequence[SessionFacts]) -> str:
    """Methods section of these sessions, as Markdown."""
    people = len({session.name.split("_")[0] for session in sessions})
    parts = [
        "# Methods",
        f"<!-- Written by chisep from the records of {counted(len(sessions), 'session')}; to be "
        f"edited for the "
        "paper. Citations are keys of references.bib. -->",
        f"Data of {counted(len(sessions), 'session')} of {counted(people, 'participant')}, arranged "
        f"by the Brain "
        f"Imaging Data Structure [@gorgolewski2016], were processed with chisep {versions(sessions)}, "
        f"a Python "
        f"package that computes with {_libraries(sessions)}. The methods named below are "
        f"implementations of its "
        "own.",
    ]
    for title, section in SECTIONS.items():
        text = merged(sessions, section)
        spread = " ".join(spread_sentences(sessions, title))
        if text or spread:
            parts += [f"## {title}", " ".join(filter(None, (text, spread)))]
    parts += ["## Limits", limits_text(sessions)]
    if said := _warnings(sessions):
        parts += ["## Warnings of the run", "\n".join(f"- {line}" for line in said)]
    parts += [
        "## Reporting list",
        "Items that the consensus on QSM asks to be reported [@bilgic2024].",
        table(("item", "this study"), reporting_rows(sessions)),
    ]
    parts += [
        "## All parameters",
        table(("stage", "parameter", "value"), parameter_rows(sessions)),
    ]
    return "\n\n".join(parts) + "\n"


def _libraries(sessions: Sequence[SessionFacts]) -> str:
    found: dict[str, set[str]] = defaultdict(set)
    for session in sessions:
        for record in session.records.values():
            for name, version in record.libraries.items():
                found[name].add(version)
    texts = []
    for name, words in _LIBRARIES.items():
        versions = enumerated([escaped(version) for version in sorted(found[name])])
        texts.append(f"{words} ({versions or f'version {NOT_RECORDED}'})")
    return enumerated(texts)


def _warnings(sessions: Sequence[SessionFacts]) -> list[str]:
    """Warnings with their stage and number of sessions, the most frequent first."""
    found: dict[str, int] = defaultdict(int)
    for session in sessions:
        for stage, record in session.records.items():
            for text in record.warnings:
                found[f"{escaped(stage)}: {escaped(text)}"] += 1
    lines = [f"{text} ({counted(n, 'session')})" for text, n in sorted(found.items(), key=lambda x: -x[1])]
    more = [f"{len(lines) - _MOST_WARNINGS} more"] if len(lines) > _MOST_WARNINGS else []
    return [*lines[:_MOST_WARNINGS], *more]
