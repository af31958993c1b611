"""Atomic files, the lock of an output folder, and checksums."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import socket
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chisep.errors import ChisepWarning, InputError, OutputError
from chisep.io.paths import require_inside

_TEMPORARY = ".chisep-tmp"
_LOCK = Path(".chisep", "lock")
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Checksums:
    """SHA-256 of files, computed once while path, size and time of a file stay the same."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], str] = {}

    def __call__(self, path: Path) -> str:
        """SHA-256 of a file; errors as of `checksum`."""
        state = path.stat()
        key = (str(path), state.st_size, state.st_mtime_ns)
        if key not in self._known:
            self._known[key] = checksum(path)
        return self._known[key]


def make_directory(path: Path) -> Path:
    """Create a directory and its parents, and check that it can be written.

    Raises
    ------
    OutputError
        If it cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(
            path,
            found=f"a place that cannot be written ({error.strerror})",
            expected="a directory that can be created and written",
            fix="Choose another output, or correct its permissions.",
        ) from error
    return path


@contextlib.contextmanager
def output_directory(path: Path) -> Iterator[None]:
    """Create a directory before long work; remove it if the work fails and it is new and empty.

    Raises
    ------
    OutputError
        If it cannot be created or written.
    """
    new = [place for place in (path, *path.parents) if not os.path.lexists(place)]
    try:
        make_directory(path)
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for place in new:
                place.rmdir()
        raise


def write_bytes(path: Path, content: bytes) -> Path:
    """Atomic write: under a temporary name, flushed to disk, then renamed.

    Raises
    ------
    OutputError
        If the file cannot be written; nothing is left behind.
    """
    make_directory(path.parent)
    # No number of a process: on a cluster two hosts may have the same.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            path,
            found=f"a write that failed ({error.strerror})",
            expected="room and permission to write",
            fix="Free space or choose another output; nothing half-written was left.",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def remove_leftovers(path: Path) -> None:
    """Delete temporary files of killed writers of one file; writers of other files may be running."""
    start = f".{path.name}."
    with contextlib.suppress(OSError):
        for other in path.parent.iterdir():
            if other.name.startswith(start) and other.name.endswith(_TEMPORARY):
                other.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> Path:
    """Write text in UTF-8 as `write_bytes` does."""
    return write_bytes(path, content.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a JSON object, indented, keys in the order given."""
    return write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@dataclass(frozen=True)
class Lock:
    """Lock of a folder: one run writes to it. It can be sent to other processes and hosts.

    Parameters
    ----------
    folder
        The locked folder.
    holder
        Text of the lock file: the run that holds it, unique to each run.
    """

    folder: Path
    holder: str

    def check(self) -> None:
        """Check that the folder is there and the lock is still this run's.

        A process that outlives its run, for example on another host, stops by this.

        Raises
        ------
        OutputError
            If not.
        """
        try:
            same = (self.folder / _LOCK).read_text(encoding="utf-8") == self.holder
        except OSError as error:
            raise output_gone(self.folder, error.strerror) from error
        if not same:
            raise OutputError(
                self.folder,
                found="another run that took this folder over, or the end of this one",
                expected="one run at a time",
                fix="Let the newer run finish.",
            )


def output_gone(folder: Path, what: str | None) -> OutputError:
    """Error that the output of a run has disappeared; the caller raises it."""
    return OutputError(
        folder,
        found=f"the output gone while a run wrote to it ({what})",
        expected="a folder that stays until the run has ended",
        fix="See what removed it or took its disk away, then call the same command again. On a "
        "cluster, all workers have to see it at the same path.",
    )


# Long because every error of the operating system needs its own message.
@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Lock]:
    """Lock a folder against other runs; it is created if needed.

    The kernel releases the lock however a process ends, so nothing remains after a crash. The text in its
    file names the holder.

    Yields
    ------
    Lock
        For processes that write to the folder for this run.

    Raises
    ------
    InputError
        If another process holds the lock.
    OutputError
        If the folder cannot be written.

    Warns
    -----
    ChisepWarning
        If the file system cannot lock.
    """
    path = require_inside(folder, folder / _LOCK)
    make_directory(path.parent)
    try:
        # Not through a link: the file that it leads to would be emptied.
        file = open(path, "a+", encoding="utf-8", opener=_open_no_link)  # noqa: SIM115
    except OSError as error:
        raise _cannot_lock(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                file.seek(0)
                raise _taken(folder, file.read()) from error
            if error.errno not in _WITHOUT_LOCKS:
                raise _cannot_lock(path, error) from error
            warnings.warn(
                f"{folder}: this file system cannot lock files ({error.strerror}); see to it yourself that "
                "no two runs write here at a time",
                ChisepWarning,
                stacklevel=3,
            )
        holder = {
            "Host": socket.gethostname(),
            "Process": os.getpid(),
            "Since": datetime.now(UTC).isoformat(timespec="seconds"),
            "Token": secrets.token_hex(8),
        }
        lock = Lock(folder, json.dumps(holder))
        try:
            file.truncate(0)
            file.write(lock.holder)
            file.flush()
            os.fsync(file.fileno())  # so that other hosts can read it
        except OSError as error:
            raise _cannot_lock(path, error) from error
        try:
            yield lock
        finally:
            with contextlib.suppress(OSError):
                file.truncate(0)


def _open_no_link(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW, 0o666)


def _taken(folder: Path, holder: str) -> InputError:
    try:
        facts = json.loads(holder)
        who = f"process {facts['Process']} on {facts['Host']}, since {facts['Since']}"
    except (ValueError, TypeError, KeyError):  # it has just begun or ended
        who = "another process"
    return InputError(
        folder,
        found=f"another run at work here: {who}",
        expected="one run at a time",
        fix="Wait until it has ended, end it, or choose another output.",
    )


def _cannot_lock(path: Path, error: OSError) -> OutputError:
    return OutputError(
        path,
        found=f"a lock that cannot be taken ({error.strerror})",
        expected="room and permission to write",
        fix="Free space, correct permissions, or choose another output.",
    )
