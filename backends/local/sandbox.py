"""One local sandbox: its start, its end, and what is known about it from outside."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workspace import seccomp
from workspace.backend import Sandbox, SandboxInfo
from workspace.errors import BackendUnavailable, StartFailed, WorkspaceGone, printable
from workspace.spec import WorkspaceSpec
from workspace.transport import connect_in

from . import bundle, cgroups, disk, interpreter, jail, uids
from .nursery import FIRST_FD, Child, nursery
from .options import Host, LocalOptions
from .store import Entry, Store

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
STAGE = "/run/workspace-runtime"
SEARCH_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def bind_listener(folder: Path) -> socket.socket:
    """A listening unix socket at `folder`/sock; the path may be longer than a socket address admits."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink("sock", dir_fd=fd)
        listener.bind(f"/proc/self/fd/{fd}/sock")
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(fd)
    return listener


class LocalSandbox(Sandbox):
    """A sandbox of this machine. The process that holds `lock` keeps it alive through the life line."""

    backend = "local"

    def __init__(self, store: Store, entry: Entry, spec: WorkspaceSpec, host: Host) -> None:
        self.id = entry.id
        self.spec = spec
        self.owned = False
        self._store = store
        self._entry = entry
        self._host = host
        self._lock: int | None = None
        self._lifeline: socket.socket | None = None
        self._child: Child | None = None
        self._errors: int | None = None
        self._last_words = ""
        self._ending = threading.Lock()
        self._cgroup: cgroups.Cgroup | None = None
        self._uid: int | None = None
        self._limits: dict[str, str] = {}
        self._secret = (secrets.randbits(64), secrets.randbits(64))

    # Start

    def start(self, lock: int) -> None:
        """Runs a sandbox on the entry's files; blocking. On failure nothing of it stays but the files."""
        self._lock = lock
        try:
            self._start()
            self.owned = True
        except BaseException:
            self._end(remove=False)
            raise

    def _start(self) -> None:
        options = LocalOptions.parse(self.spec.options)
        listener = bind_listener(self._entry.path)
        ours, theirs = socket.socketpair()
        self._lifeline = ours
        self._errors = os.memfd_create("workspace-errors")
        fds = [listener.fileno(), theirs.fileno(), self._config(), self._seccomp(), self._errors]
        try:
            request = self._request(options)
            self._child = nursery().start(request, fds)
        finally:
            listener.close()
            theirs.close()
            os.close(fds[2])
            os.close(fds[3])

    def _request(self, options: LocalOptions) -> dict[str, Any]:
        isolated = self.spec.isolation == "required"
        if isolated:
            self._take_limits()
        request: dict[str, Any] = {"cgroups": self._cgroup.join_paths() if self._cgroup else [], "env": {}}
        stage = self._stage() if isolated and os.geteuid() == 0 else None
        sources = jail.Sources(stage)
        request["argv"] = self._jailed(options, sources) if isolated else self._bare()
        request["binds"] = sources.binds
        if stage is not None:
            request.update(
                stage=stage, uid=self._uid, gid=self._uid, memory={name: list(size) for name, size in jail.in_memory(self.spec).items()}
            )
            if self._has_disk():
                request["disk"] = str(self._entry.disk_path)
        return request

    def _stage(self) -> str:
        os.makedirs(STAGE, mode=0o755, exist_ok=True)
        return STAGE

    def _has_disk(self) -> bool:
        return self._entry.disk_path.exists()

    def _jailed(self, options: LocalOptions, sources: jail.Sources) -> list[str]:
        program, _ = self._host.require_bwrap()
        guest_python, user_python = interpreter.guests(), interpreter.users()
        prefixes = [python.prefix for python in (guest_python, user_python) if python is not None and python.prefix is not None]
        prefixes += jail.check_toolchains(options.toolchains)
        work, home = self._directories(sources)
        plan = jail.Plan(
            spec=self.spec,
            guest=bundle.guest(self._store.home, guest_python.program),
            etc=bundle.etc(self._store.home, self.spec.network.mode == "open"),
            python=guest_python.program,
            prefixes=tuple(dict.fromkeys(prefixes)),
            workspace=work,
            home=home,
            seccomp_fd=FIRST_FD + 3,
            guest_fds=(FIRST_FD, FIRST_FD + 1, FIRST_FD + 2),
        )
        return jail.arguments(program, plan, sources)

    def _bare(self) -> list[str]:
        python = interpreter.guests()
        folder = bundle.guest(self._store.home, python.program)
        for path in self._mapped().values():
            os.makedirs(path, exist_ok=True)
        return jail.guest_argv(python.program, str(folder), (FIRST_FD, FIRST_FD + 1, FIRST_FD + 2))

    def _mapped(self) -> dict[str, str]:
        return {"/workspace": str(self._entry.files_path / "workspace"), "/home/user": str(self._entry.files_path / "home")}

    def _directories(self, sources: jail.Sources) -> tuple[str, str]:
        if self._has_disk():
            assert sources.stage is not None
            disk.wait_released(self._entry.disk_path)
            return f"{sources.stage}/disk/workspace", f"{sources.stage}/disk/home"
        paths = list(self._mapped().values())
        for path in paths:
            os.makedirs(path, mode=0o755, exist_ok=True)
            if self._uid is not None and os.stat(path).st_uid != self._uid:
                os.chown(path, self._uid, self._uid)
        return sources.add(paths[0]), sources.add(paths[1])

    def _take_limits(self) -> None:
        where = self._host.hierarchy
        if where is not None:
            self._cgroup = cgroups.Cgroup(where, self.id)
            try:
                self._cgroup.create(self.spec.resources)
            except OSError as error:
                raise StartFailed(f"the limits {self.spec.resources!r} cannot be set: {error}") from error
        if os.geteuid() == 0:
            self._uid = self._claim_uid()
        self._limits = self._host.in_force(self.spec.resources, self._has_disk())

    def _claim_uid(self) -> int:
        state = self._entry.read()
        if state.get("uid") is None:
            state["uid"] = uids.claim(self._entry.path, self._host.uid_range)
            self._entry.write(state)
        return int(state["uid"])

    def _config(self) -> int:
        """A descriptor from which the guest reads its configuration: not argv, not the environment."""
        resources, isolated = self.spec.resources, self.spec.isolation == "required"
        limits = {"NOFILE": resources.open_files, "FSIZE": resources.file_bytes, "CORE": 0, "MEMLOCK": 8 * 1024 * 1024}
        if isolated and "pids" not in (self._host.hierarchy.controllers if self._host.hierarchy else ()):
            limits["NPROC"] = resources.pids
        if isolated and "memory" not in (self._host.hierarchy.controllers if self._host.hierarchy else ()):
            limits["AS"] = resources.memory_bytes
        config: dict[str, Any] = {
            "home": "/home/user",
            "user": "user",
            "users": {"user": None},
            "env": self._environment(),
            "ttl_s": self.spec.ttl_s,
            "limits": limits,
        }
        if isolated:
            config["tag_secret"] = self._secret
            config["writable"] = ["/workspace", "/home/user", "/tmp", *(f"/dev/{name}" for name in jail.DEVICES)]
        else:
            config["mapped"] = self._mapped()
        return _memfd("workspace-config", json.dumps(config).encode())

    def _environment(self) -> dict[str, str]:
        """What every command starts from; nothing of the host's environment."""
        python = interpreter.users()
        own = [python.bin] if python is not None and python.bin is not None else []
        isolated = self.spec.isolation == "required"
        base = {
            "PATH": ":".join(["/home/user/.local/bin" if isolated else f"{self._mapped()['/home/user']}/.local/bin", *own, *SEARCH_PATH]),
            "HOME": "/home/user" if isolated else self._mapped()["/home/user"],
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "TMPDIR": "/tmp",
        }
        return {**base, **self.spec.env}

    def _seccomp(self) -> int:
        return _memfd("workspace-seccomp", seccomp.build(self._secret) if self.spec.isolation == "required" else b"")

    # Sandbox

    async def dial(self) -> socket.socket:
        try:
            return connect_in(self._entry.path)
        except OSError as error:
            reason, message = await self.why_gone()
            raise WorkspaceGone(message, reason) from error

    async def alive(self) -> bool:
        if self._child is not None:
            return self._child.status is None
        return self._entry.held()

    async def why_gone(self) -> tuple[str, str]:
        if self._child is not None:
            await asyncio.to_thread(self._child.wait, 2.0)
        if self.memory_kills() and self._child is not None and self._child.status is not None:
            return "out_of_memory", f"the sandbox {self.id} ended: the kernel killed it at its memory limit"
        said = self._said()
        return "killed", f"the sandbox {self.id} ended" + (f": {said}" if said else "")

    def _said(self) -> str:
        """What bubblewrap or the guest printed before the end."""
        if self._errors is None:
            return self._last_words
        try:
            size = os.fstat(self._errors).st_size
            return printable(os.pread(self._errors, 500, max(0, size - 500)).decode("utf-8", "replace").strip())
        except OSError:  # closed meanwhile by another thread, which has kept what was said
            return self._last_words

    async def stop(self) -> None:
        await asyncio.to_thread(self._end, False)

    async def destroy(self) -> None:
        await asyncio.to_thread(self._end, True)

    def _end(self, remove: bool) -> None:
        """Kills, waits, releases; blocking, idempotent, one at a time."""
        with self._ending:
            self._take_down(remove)

    def _take_down(self, remove: bool) -> None:
        if self._lifeline is not None:
            self._lifeline.close()
            self._lifeline = None
        if self._child is not None:
            if self.spec.isolation == "none":
                self._child.wait(STOP_TIMEOUT_S)  # nothing but the guest itself can end what it has started
            self._child.kill()
            if not self._child.wait(STOP_TIMEOUT_S):
                raise StartFailed(f"the sandbox {self.id} does not end {STOP_TIMEOUT_S:g} s after SIGKILL")
        if self._cgroup is not None:
            self._cgroup.remove()
            self._cgroup = None
        if self._errors is not None:
            self._last_words = self._said()
            errors, self._errors = self._errors, None
            os.close(errors)
        with contextlib.suppress(OSError):
            os.unlink(self._entry.path / "sock")
        if remove:
            self._remove_files()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self.owned = False

    def _remove_files(self) -> None:
        with contextlib.suppress(LookupError):
            if self._lock is None:
                self._lock = self._wait_for_lock()
            uid = self._entry.read().get("uid")
            self._store.remove(self._entry)
            if uid is not None:
                uids.release(uid)

    def _wait_for_lock(self) -> int:
        """The owner, in another process, lets go when it sees that the sandbox has ended."""
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while True:
            lock = self._entry.lock()
            if lock is not None:
                return lock
            if time.monotonic() > deadline:
                raise BackendUnavailable(f"workspace {self.id} has ended, but the process that owns it does not let go of its files")
            time.sleep(0.005)

    async def touch(self, spec: WorkspaceSpec | None = None) -> None:
        with contextlib.suppress(OSError, LookupError):
            if spec is not None:
                self.spec = spec
                self._entry.write({**self._entry.read(), "spec": spec.as_json()})
            self._entry.touch()

    def memory_kills(self) -> int:
        where = self._host.hierarchy
        if where is None or self.spec.isolation == "none":
            return 0
        return cgroups.Cgroup(where, self.id).memory_kills()

    async def pause(self) -> None:
        """Freezes all processes."""
        self._freezer().freeze(True)

    async def resume(self) -> None:
        """Lets them go on."""
        self._freezer().freeze(False)

    def _freezer(self) -> cgroups.Cgroup:
        where = self._host.hierarchy
        if where is None or "freezer" not in where.controllers:
            raise OSError(errno.ENOTSUP, "no freezer cgroup")
        return cgroups.Cgroup(where, self.id)

    def describe(self, walls: Mapping[str, object]) -> SandboxInfo:
        isolated = self.spec.isolation == "required"
        environment = jail.environment_name() if isolated else "no isolation: plain processes of the calling user"
        limits = self._limits or self._host.in_force(self.spec.resources, self._has_disk())
        found = self._host.walls(self.spec, walls) if isolated else {}
        return SandboxInfo(environment, found, limits if isolated else {}, "unix socket", {"host": socket.gethostname()})


def _memfd(name: str, data: bytes) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def wait_for_owner(entry: Entry) -> int | None:
    """Until the sandbox of `entry` listens (None), or nobody holds it (its lock, now ours)."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            connect_in(entry.path).close()
            return None
        except OSError:
            lock = entry.lock()
        if lock is not None:
            return lock
        if time.monotonic() > deadline:
            raise StartFailed(f"the process that holds workspace {entry.id} has not started it for {START_TIMEOUT_S:g} s")
        time.sleep(0.005)
