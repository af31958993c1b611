from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chisep.errors import ChisepWarning, InputError, OutputError
from chisep.io.files import Lock, locked, output_directory, remove_leftovers, write_bytes, write_json


class TestWriting:
    def test_replaces_whole_and_leaves_nothing_else(self, tmp_path):
        path = tmp_path / "new" / "file"
        for content in (b"one", b"another"):
            assert write_bytes(path, content).read_bytes() == content
        assert [other.name for other in path.parent.iterdir()] == ["file"]

    def test_a_full_disk_leaves_the_old_file(self, tmp_path):
        """A limit on the size of files stands for a full disk."""
        code = (
            "import resource, sys; from pathlib import Path; from chisep.io.files import write_bytes\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
            "write_bytes(Path(sys.argv[1]), b'x' * 2000)"
        )
        path = write_bytes(tmp_path / "file", b"old")
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
        )
        assert "OutputError" in done.stderr
        assert "File too large" in done.stderr
        assert path.read_bytes() == b"old"
        assert [other.name for other in tmp_path.iterdir()] == ["file"]

    def test_no_number_beyond_json(self, tmp_path):
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "file.json", {"a": float("nan")})
        assert not list(tmp_path.iterdir())

    def test_leftovers_are_those_of_one_file(self, tmp_path):
        """Another process may be writing another file of the folder."""
        mine, other = tmp_path / ".map.nii.gz.1a2b3c4d.chisep-tmp", tmp_path / ".map.json.1a2b3c4d.chisep-tmp"
        kept = [other, tmp_path / "map.nii.gz", tmp_path / ".map.nii.gz.bak"]
        for path in (mine, *kept):
            path.touch()
        remove_leftovers(tmp_path / "map.nii.gz")
        assert sorted(tmp_path.iterdir()) == sorted(kept)
        remove_leftovers(tmp_path / "no" / "such" / "file")


def hold(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until its standard input is closed."""
    code = (
        "import sys; from pathlib import Path; from chisep.io.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


class TestOutputDirectory:
    def test_is_there_for_the_work_and_kept_after_it(self, tmp_path):
        with output_directory(tmp_path / "new" / "out"):
            assert (tmp_path / "new" / "out").is_dir()
        assert (tmp_path / "new" / "out").is_dir()

    def test_leaves_nothing_new_and_empty_after_a_failure(self, tmp_path):
        (tmp_path / "old").mkdir()
        with pytest.raises(InputError), output_directory(tmp_path / "old" / "new" / "out"):
            raise InputError("a map", found="nothing", expected="a map", fix="Give one.")
        assert list(tmp_path.rglob("*")) == [tmp_path / "old"]

    def test_keeps_what_was_written_or_there_before(self, tmp_path):
        (tmp_path / "old").mkdir()

        def interrupted(out: Path) -> None:
            with output_directory(out):
                (tmp_path / "new").mkdir(exist_ok=True)
                (tmp_path / "new" / "kept").touch()
                raise KeyboardInterrupt

        for out in (tmp_path / "old", tmp_path / "new"):
            with pytest.raises(KeyboardInterrupt):
                interrupted(out)
        assert (tmp_path / "old").is_dir()
        assert (tmp_path / "new" / "kept").exists()

    def test_says_what_cannot_be_written(self, tmp_path):
        with (
            pytest.raises(OutputError, match="cannot be written"),
            output_directory(tmp_path / ("x" * 999)),
        ):
            pass


class TestLock:
    def test_one_at_a_time(self, tmp_path):
        with hold(tmp_path) as other:
            with pytest.raises(InputError, match=f"process {other.pid} on .*, since 20"), locked(tmp_path):
                pass
            other.communicate("")
        with locked(tmp_path) as lock:
            lock.check()

    def test_let_go_however_the_process_ends(self, tmp_path):
        with hold(tmp_path) as other:
            other.kill()
            other.wait()
            with locked(tmp_path) as lock:
                lock.check()

    def test_a_worker_learns_that_its_run_is_over(self, tmp_path):
        with locked(tmp_path) as lock:
            lock.check()
        with pytest.raises(OutputError, match="another run"):
            lock.check()
        with locked(tmp_path) as newer:
            assert newer != lock
            with pytest.raises(OutputError, match="another run"):
                lock.check()
            (tmp_path / ".chisep" / "lock").unlink()
            with pytest.raises(OutputError, match="gone"):
                newer.check()

    def test_only_the_token_decides(self, tmp_path):
        """Not the clock, nor which process of which host it is."""
        with locked(tmp_path) as lock:
            facts = json.loads(lock.holder)
            assert facts["Process"] == os.getpid()
            same = json.dumps(facts | {"Token": "0" * 16})
            with pytest.raises(OutputError, match="another run"):
                Lock(tmp_path, same).check()

    @pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
    def test_file_systems_without_locks(self, tmp_path, monkeypatch, number):
        """The kernel's answer is injected, as every file system here can lock."""

        def refuse(_file, _operation):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", refuse)
        with pytest.warns(ChisepWarning, match="cannot lock"), locked(tmp_path) as lock:
            lock.check()

    def test_a_place_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="file"), locked(tmp_path / "file"):
            pass
        (tmp_path / ".chisep" / "lock").mkdir(parents=True)
        with pytest.raises(OutputError, match="lock"), locked(tmp_path):
            pass
