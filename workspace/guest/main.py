"""Start of the guest: read the configuration, raise the walls, serve hosts until there is no reason to live.

How it is started depends on the environment: `inherited` with descriptors, `contained` as the first process of a container.
"""

from __future__ import annotations

import _socket
import os
import sys
import time
from binascii import unhexlify

from . import codec, sealing, wire
from .channel import Channel
from .commands import Commands
from .faults import Fault
from .files import Files
from .loop import READ, Loop
from .metrics import Metrics, memory_kills
from .paths import Paths
from .processes import Processes
from .transfer import Transfer
from .trees import Trees
from .watch import Watches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .channel import Stream
    from .loop import Timer

MAX_LINKS = 64
OWNER_S = 60.0
"""How long a sandbox without a life line waits for its owner to connect."""


class Guest:
    """Everything that a sandbox serves, and the reasons to end."""

    def __init__(self, config: dict[str, Any], walls: dict[str, Any]) -> None:
        self.loop = Loop()
        self._config = config
        self._walls = walls
        self._channels: set[Channel] = set()
        self._expiry: Timer | None = None
        self._owner: Channel | None = None
        self._owner_wait: Timer | None = None
        self._ttl = config.get("ttl_s")
        self._last_use = time.monotonic()
        paths = Paths(config["home"], config.get("mapped", {}))
        self._paths = paths
        self.processes = Processes(self.loop, config)
        self._parts: dict[str, Any] = {
            "command": Commands(self.loop, self.processes, paths, config),
            "file": Files(paths),
            "tree": Trees(paths),
            "transfer": Transfer(paths),
            "watch": Watches(self.loop, paths),
            "metrics": Metrics(paths),
            "guest": self,
        }

    def serve(self, stream: Stream, request: dict[str, Any]) -> Any:
        """Answers one request: `method` is `part.verb`, the rest are its parameters."""
        self._last_use = time.monotonic()
        part, _, verb = str(request.get("method")).partition(".")
        handler: Callable[..., Any] | None = None
        if part in self._parts and verb and not verb.startswith("_"):
            handler = getattr(type(self._parts[part]), verb, None)
        if not callable(handler) or (part, verb) in _NOT_METHODS:
            raise Fault("ENOSYS", "this guest has no method %r" % request.get("method"))
        return handler(self._parts[part], stream, request)

    def grep(self, stream: Stream, request: dict[str, Any]) -> Any:
        from . import grep, worker

        root = self._paths.real(request["path"])
        grep.compile_pattern(request)
        return worker.run(self.loop, stream, lambda write: grep.search(root, request, write))

    def expire(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        """Sets how long the sandbox lives after its last use (None: for ever)."""
        self._ttl = request["ttl_s"]
        self._schedule_expiry()
        return {}

    def stop(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        """Ends the sandbox; the reply leaves before it does."""
        self.loop.after(0, lambda: self._end("closed", "the workspace was closed"))
        return {}

    def use(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        return {"idle_s": time.monotonic() - self._last_use, "ttl_s": self._ttl, "links": len(self._channels)}

    def hello(self) -> bytes:
        return codec.encode(
            {
                "version": wire.VERSION,
                "window": wire.WINDOW,
                "python": "%d.%d.%d" % sys.version_info[:3],
                "home": self._config["home"],
                "shell": "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh",
                "walls": self._walls,
                "memory_kills": memory_kills(),
            }
        )

    def run(self, server: _socket.socket, lifeline: int | None) -> None:
        """Serves until the owner is gone, the time is over or a host says so; then nothing is left running."""
        server.setblocking(False)
        self.loop.watch(server.fileno(), READ, lambda events: self._accept(server))
        if lifeline is not None:
            self.loop.watch(lifeline, READ, lambda events: self._owner_gone())
        elif not self._config.get("detached"):
            self._await_owner()
        self._heed_children()
        self._schedule_expiry()
        self.loop.run()
        self.processes.kill_all()

    def _owner_gone(self) -> None:
        self._end("owner_gone", "the owner of the sandbox ended")

    def _await_owner(self) -> None:
        self._owner_wait = self.loop.after(OWNER_S, self._owner_gone)

    def _accept(self, server: _socket.socket) -> None:
        try:
            fd, _ = server._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        if len(self._channels) >= MAX_LINKS:
            os.close(fd)
            return
        os.set_blocking(fd, False)
        channel = Channel(self.loop, fd, self.serve, self._on_closed)
        self._channels.add(channel)
        if not self._config.get("greets"):
            channel.admit(self.hello())
        else:
            channel.on_greeting = lambda greeting: self._greet(channel, greeting)

    def _greet(self, channel: Channel, greeting: dict[str, Any]) -> None:
        """The owner says that it is the owner; where others may reach our address, too, the token has to be known."""
        token = self._config["token"]
        if token is not None and not _same(str(greeting.get("token")), token):
            channel.goodbye("protocol", "wrong token")
            return
        if greeting.get("owner"):
            self._owner = channel
            if self._owner_wait is not None:
                self._owner_wait.cancel()
        channel.admit(self.hello())

    def _on_closed(self, channel: Channel) -> None:
        self._channels.discard(channel)
        if channel is self._owner:
            self._owner_gone()

    def _heed_children(self) -> None:
        ended = sealing.child_signals()

        def reap(events: int) -> None:
            os.read(ended, 4096)
            self.processes.reap()

        self.loop.watch(ended, READ, reap)

    def _schedule_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if self._ttl is None:
            return
        if any(not stream.passive for channel in self._channels for stream in channel.streams.values()):
            self._last_use = time.monotonic()  # somebody awaits a result; listening alone is no use
        left = self._last_use + self._ttl - time.monotonic()
        if left <= 0:
            self._end("expired", "the workspace was not used for %g seconds" % self._ttl)
        else:
            self._expiry = self.loop.after(left, self._schedule_expiry)

    def _end(self, reason: str, message: str) -> None:
        for channel in list(self._channels):
            channel.goodbye(reason, message)
        self.loop.stop()


_NOT_METHODS = {("guest", "run"), ("guest", "serve"), ("guest", "hello"), ("command", "on_over")}


def _read_config(fd: int) -> dict[str, Any]:
    parts = []
    while True:
        part = os.read(fd, 65536)
        if not part:
            break
        parts.append(part)
    os.close(fd)
    return codec.decode(b"".join(parts))


def _same(given: str, wanted: str) -> bool:
    """Equality in time that does not tell where the difference is."""
    difference = len(given) ^ len(wanted)
    for one, other in zip(given.encode("utf-8", "replace"), wanted.encode()):  # noqa: B905 (3.8)
        difference |= one ^ other
    return not difference


def _seal(config: dict[str, Any]) -> dict[str, Any]:
    """Raises the walls that are the guest's own; what the kernel says of the result."""
    os.umask(0o022)
    sealing.ignore_signals()
    config.setdefault("score_fd", sealing.open_oom_score())
    sealing.make_undumpable()
    if os.getpid() != 1:
        sealing.become_subreaper()
    sealing.limit(config.get("limits", {}))
    landlock = sealing.landlock(config["writable"]) if config.get("writable") else 0
    if config.get("seccomp"):
        sealing.seccomp(unhexlify(config["seccomp"]))
    return dict(sealing.observed(), landlock=landlock)


def inherited(listener: int, lifeline: int, config_fd: int) -> None:
    """Start with descriptors from the launcher: a listening socket, the life line, the configuration."""
    for fd in (listener, lifeline, config_fd):
        os.set_inheritable(fd, False)
    config = _read_config(config_fd)
    walls = _seal(config)
    Guest(config, walls).run(_socket.socket(fileno=listener), lifeline)


def contained(config_path: str) -> None:
    """Start as the first process of a container, as root: the configuration is a file, which is removed."""
    from . import container

    config = _read_config(os.open(config_path, os.O_RDONLY))
    os.unlink(config_path)
    config["score_fd"] = sealing.open_oom_score()
    server = container.prepare(config)
    container.drop_privileges(config)
    walls = _seal(config)
    Guest(config, walls).run(server, None)
