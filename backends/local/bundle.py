"""What sandboxes see read-only: the guest, precompiled, and a made-up /etc. Made once per content, kept in the state directory."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from workspace.bundle import GUEST_PACKAGE, guest_sources, guest_version
from workspace.errors import StartFailed

_PASSWD = """\
root:x:0:0:root:/:/usr/sbin/nologin
user:x:1000:1000:user:/home/user:/bin/bash
nobody:x:65534:65534:nobody:/:/usr/sbin/nologin
"""
ETC = {
    "passwd": _PASSWD,
    "group": "root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost workspace\n::1 localhost\n",
    "hostname": "workspace\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
    "resolv.conf": "",
    "shells": "/bin/sh\n/bin/bash\n",
    "profile": "PS1='\\w \\$ '\n",
    "bash.bashrc": "PS1='\\w \\$ '\n",
}
HOST_ETC = (
    "ssl",
    "ca-certificates",
    "pki",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "alternatives",
    "localtime",
    "timezone",
    "services",
    "protocols",
    "mime.types",
    "fonts",
    "debian_version",
    "os-release",
    "java-17-openjdk",
    "python3.11",
    "python3",
    "perl",
)
"""Entries of the host's /etc that programs need and that hold no secrets; bound read-only where they exist."""


def _make_once(target: Path, fill: Callable[[Path], None]) -> Path:
    """Fills a directory beside `target` and renames it into place; whoever is first wins."""
    if target.is_dir():
        return target
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".new-"))
    try:
        temporary.chmod(0o755)
        fill(temporary)
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def guest(home: Path, python: str) -> Path:
    """A directory with the guest package, byte-compiled by `python`."""

    def fill(folder: Path) -> None:
        package = folder / GUEST_PACKAGE
        package.mkdir(mode=0o755)
        for name, source in guest_sources().items():
            (package / name).write_bytes(source)
        compile_guest(python, package)

    tag = hashlib.sha256(f"{python}:{os.stat(python).st_mtime_ns}".encode()).hexdigest()[:12]
    return _make_once(home / "guest" / f"{guest_version()}-{tag}", fill)


def compile_guest(python: str, package: Path) -> None:
    """Writes pycs that are not checked against their source at start."""
    command = [python, "-I", "-S", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", str(package)]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StartFailed(f"the guest cannot be compiled by {python!r}, which has to be Python 3.8 or newer: {done.stderr.strip()[-500:]}")


def etc(home: Path, network: bool) -> Path:
    """The made-up /etc; with `network`, the host's resolver settings are in it."""
    files = dict(ETC)
    if network and os.path.exists("/etc/resolv.conf"):
        files["resolv.conf"] = Path("/etc/resolv.conf").read_text()
    shared = [name for name in HOST_ETC if os.path.exists("/etc/" + name)]

    def fill(folder: Path) -> None:
        for name, text in files.items():
            (folder / name).write_text(text)
        for name in shared:  # mount points
            if os.path.isdir("/etc/" + name):
                (folder / name).mkdir(mode=0o755)
            else:
                (folder / name).touch()
        os.symlink("/proc/self/mounts", folder / "mtab")

    key = hashlib.sha256(repr((sorted(files.items()), shared)).encode()).hexdigest()[:16]
    return _make_once(home / "etc" / key, fill)
