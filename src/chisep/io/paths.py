"""Checks of paths: regular files, labels, and links out of a dataset."""

from __future__ import annotations

import stat
from pathlib import Path

from chisep.errors import InputError, OutputError


def is_file(path: Path) -> bool:
    """Whether there is a regular file to read; reading a pipe or a device would never end.

    A name that the system cannot even look up (too long, a loop of links) is no file.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def is_directory(path: Path) -> bool:
    """Whether there is a directory; a name that the system cannot look up is none."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def is_label(text: str) -> bool:
    """Whether a text may be a label in file names: ASCII letters and digits, 64 at most."""
    return text.isascii() and text.isalnum() and len(text) <= 64


def require_label(text: str, source: str | Path) -> None:
    """Check that a text may be a label in file names; see `is_label`.

    Raises
    ------
    InputError
        If it may not.
    """
    if not is_label(text):
        raise InputError(
            source,
            found=f"the label {text[:80]!r}",
            expected="letters and digits (a to z, A to Z, 0 to 9), 64 at most",
            fix="Choose another label.",
        )


def require_inside(root: Path, path: Path) -> Path:
    """Check before a file is written that no symbolic link leads it out of a dataset.

    Parameters
    ----------
    root
        The dataset; it may itself be reached by a link.
    path
        The file, below `root` by its name. If it is a link itself, writing replaces the link.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    OutputError
        If a folder between them is a link to a place outside.
    """
    try:
        folder = path.parent.resolve()
        # From Python 3.13 on a loop of links is no error: the link stays in the resolved path.
        looped = any(part.is_symlink() for part in (folder, *folder.parents))
        inside = not looped and folder.is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a loop of links
        inside = False
    if not inside:
        raise OutputError(
            path,
            found="a symbolic link on the way that leads out of the output folder",
            expected=f"folders that lie in {root}",
            fix="Remove the link, or write to the folder that it points to.",
        )
    return path
