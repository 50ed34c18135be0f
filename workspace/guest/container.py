"""What the first process of a container does as root, before it stops being root."""

from __future__ import annotations

import _socket
import os

from . import sealing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PASSWD = "user:x:%(uid)d:%(gid)d:user:%(home)s:%(shell)s"


def prepare(config: dict[str, Any]) -> _socket.socket:
    """The user, its directories and the socket that hosts connect to."""
    uid, gid = config["uid"], config["gid"]
    shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
    _first_line("/etc/passwd", PASSWD % {"uid": uid, "gid": gid, "home": config["home"], "shell": shell})
    _first_line("/etc/group", "user:x:%d:" % gid)
    for path in ("/workspace", config["home"]):
        os.makedirs(path, exist_ok=True)
        if os.stat(path).st_uid != uid:
            os.chown(path, uid, gid)
            os.chmod(path, 0o755)
    os.makedirs(os.path.dirname(config["socket"]), mode=0o700, exist_ok=True)
    server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        os.unlink(config["socket"])
    except FileNotFoundError:
        pass
    server.bind(config["socket"])
    os.chmod(config["socket"], 0o666)  # the token is the lock
    folder = os.path.dirname(config["socket"])
    if config["token"] is not None:
        _take_over(folder, uid)
    else:
        os.chmod(folder, 0o700)  # for root's relays alone
    server.listen(64)
    return server


def _take_over(folder: str, uid: int) -> None:
    """The folder comes from the host; from now on user code can neither replace the socket nor list what lies beside it."""
    if os.stat(folder).st_uid == uid:
        os.chown(folder, 0, 0)
    os.chmod(folder, 0o711)


def _first_line(path: str, line: str) -> None:
    """Makes `line` the first of a database, so that the uid is called `user`; a read-only root is left as it is."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            old = file.read()
        if old.startswith(line + "\n"):
            return
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(line + "\n" + old)
    except OSError:
        pass


def drop_privileges(config: dict[str, Any]) -> None:
    """For good, unless root was asked for: then its capabilities are those that the container has."""
    if config["user"] == "root":
        return
    sealing.drop_bounding_set()
    os.setgroups([config["gid"]])
    os.setresgid(config["gid"], config["gid"], config["gid"])
    os.setresuid(config["uid"], config["uid"], config["uid"])
