from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chisep.errors import InputError, OutputError
from chisep.io.paths import is_directory, is_file, is_label, require_inside, require_label


def test_only_regular_files_and_directories_count(tmp_path):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    names = ("file", "link", "pipe", "loop", "none", "a\0b", "x" * 300, ".")
    assert [name for name in names if is_file(tmp_path / name)] == ["file", "link"]
    assert [name for name in names if is_directory(tmp_path / name)] == ["."]


@given(st.text())
def test_labels_are_ascii_letters_and_digits(text):
    expected = 0 < len(text) <= 64 and all(c in "abcdefghijklmnopqrstuvwxyz0123456789" for c in text.lower())
    # "K" (Kelvin) and some others become ASCII when lowered.
    assert is_label(text) == (expected and text.isascii())
    if not is_label(text):
        with pytest.raises(InputError, match="letters and digits"):
            require_label(text, "--option")


def test_links_that_stay_inside_are_fine(tmp_path):
    out = tmp_path / "out"
    (out / "real").mkdir(parents=True)
    (out / "link").symlink_to("real")
    (tmp_path / "door").symlink_to(out)
    for root in (out, tmp_path / "door"):
        for path in (root / "a.nii", root / "new" / "folder" / "a.nii", root / "link" / "a.nii"):
            assert require_inside(root, path) == path


def test_links_that_lead_out_are_refused(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "out-2"
    out.mkdir()
    elsewhere.mkdir()
    (out / "link").symlink_to(elsewhere)
    (out / "loop").symlink_to("loop")
    for path in (out / "link" / "a", out / "link" / "new" / "a", out / "loop" / "a", out / ".." / "a"):
        with pytest.raises(OutputError, match="symbolic link"):
            require_inside(out, path)
    # A link in place of the file is replaced by renaming, so that nothing is written through it.
    (out / "a").symlink_to(elsewhere / "a")
    assert require_inside(out, out / "a")
