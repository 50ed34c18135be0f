"""A workspace's own file system in a file: the kernel's hard limit on bytes and inodes, for hosts where we are root."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from workspace.errors import BackendUnavailable

FICLONE = 0x40049409
RELEASE_S = 20.0


def available() -> bool:
    """Whether loop devices and mkfs.ext4 are there."""
    return os.geteuid() == 0 and os.path.exists("/dev/loop-control") and mkfs() is not None


def mkfs() -> str | None:
    return shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin")


def _template(home: Path, size: int) -> Path:
    target = home / "templates" / f"ext4-{size}.img"
    if target.exists():
        return target
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=target.parent)
    try:
        os.ftruncate(fd, size)
        command = [mkfs() or "mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", temporary]
        done = subprocess.run(command, env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BackendUnavailable(f"mkfs.ext4 cannot make a file system of {size} bytes: {done.stderr.strip()[-300:]}")
        os.rename(temporary, target)
    finally:
        os.close(fd)
        Path(temporary).unlink(missing_ok=True)
    return target


def create(home: Path, image: Path, size: int) -> None:
    """A new, empty file system of `size` bytes at `image`; sparse, so that it takes what is written to it."""
    template = _template(home, size)
    with open(template, "rb") as source, open(image, "xb") as target:
        os.fchmod(target.fileno(), 0o600)
        try:
            fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
        except OSError:
            _copy_sparse(source.fileno(), target.fileno())


def _copy_sparse(source: int, target: int) -> None:
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            begin = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        at = os.lseek(source, begin, os.SEEK_HOLE)
        while begin < at:
            begin += os.copy_file_range(source, target, at - begin, begin, begin)


def wait_released(image: Path) -> None:
    """Waits until no loop device holds `image`: two on one file would destroy it."""
    deadline = time.monotonic() + RELEASE_S
    wanted = str(image)
    while any(_backing(device) == wanted for device in Path("/sys/block").glob("loop*")):
        if time.monotonic() > deadline:
            raise BackendUnavailable(f"the file system {wanted!r} is still in use {RELEASE_S:g} s after its sandbox ended")
        time.sleep(0.01)


def _backing(device: Path) -> str | None:
    try:
        return (device / "loop" / "backing_file").read_text().rstrip("\n")
    except OSError:
        return None
