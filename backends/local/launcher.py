"""The launcher: a small helper process that starts sandboxes. Standard library only; run as a script.

It is forked from (not the possibly threaded host process), so that between fork and exec there is one thread and a
short list of steps. It is the parent of every sandbox: when the host process ends for whatever reason, the launcher
reads end of file, exits, and bubblewrap's `--die-with-parent` ends the sandboxes.

Requests and answers are JSON messages on a SOCK_SEQPACKET socket (descriptor 3); descriptors ride along.
"""

import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys

CLONE_NEWNS = 0x00020000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
LOOP_CTL_GET_FREE, LOOP_CONFIGURE = 0x4C82, 0x4C0A
LO_FLAGS_AUTOCLEAR = 4
FIRST_FD = 10
MAX_MESSAGE = 128 * 1024

libc = ctypes.CDLL(None, use_errno=True)


def check(result, what):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, "%s: %s" % (what, os.strerror(number)))
    return result


def mount(source, target, kind, flags, data=""):
    result = libc.mount(os.fsencode(source), os.fsencode(target), os.fsencode(kind), ctypes.c_ulong(flags), os.fsencode(data))
    check(result, "mount %s" % target)


def attach_loop(image):
    """A loop device on `image` that frees itself when it is unmounted; tried again when another process is faster."""
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(64):
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
            device = os.open("/dev/loop%d" % number, os.O_RDWR | os.O_CLOEXEC)
            # struct loop_config: fd, block_size, struct loop_info64 (lo_flags at 52), reserved
            info = bytearray(232)
            struct.pack_into("=I", info, 52, LO_FLAGS_AUTOCLEAR)
            config = struct.pack("=II", backing, 0) + bytes(info) + bytes(64)
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, config)
                return "/dev/loop%d" % number, device
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
        raise OSError(errno.EBUSY, "no free loop device")
    finally:
        os.close(backing)
        os.close(control)


def mount_disk(stage, disk, uid, gid):
    """The workspace's own ext4 image at STAGE/disk, with its two directories."""
    point = stage + "/disk"
    os.mkdir(point)
    name, device = attach_loop(disk)
    try:
        mount(name, point, "ext4", MS_NOSUID | MS_NODEV)
    finally:
        os.close(device)
    for folder in ("workspace", "home"):
        try:
            os.mkdir(point + "/" + folder, 0o755)
        except FileExistsError:
            continue
        os.chown(point + "/" + folder, uid, gid)


def build_stage(request):
    """A private mount namespace with everything that the sandbox's own uid could not reach by path."""
    stage = request["stage"]
    check(libc.unshare(CLONE_NEWNS), "unshare mount namespace")
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("tmpfs", stage, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
    for index, source in enumerate(request["binds"]):
        point = "%s/%d" % (stage, index)
        os.mkdir(point)
        mount(source, point, "", MS_BIND | MS_REC)
    for name, (size, inodes) in request["memory"].items():
        os.mkdir(stage + "/" + name)
        limits = "mode=1777,size=%d,nr_inodes=%d,uid=%d,gid=%d" % (size, inodes, request["uid"], request["gid"])
        mount("tmpfs", stage + "/" + name, "tmpfs", MS_NOSUID | MS_NODEV, limits)
    if request.get("disk"):
        mount_disk(stage, request["disk"], request["uid"], request["gid"])


def join_cgroups(paths):
    for path in paths:
        with open(path, "w") as procs:
            procs.write("0")


def place_fds(fds):
    """Received descriptors become FIRST_FD and up; standard input is empty; all others but 1 and 2 are closed."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds]
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    for index, fd in enumerate(high):
        os.dup2(fd, FIRST_FD + index)
    os.closerange(3, FIRST_FD)
    os.closerange(FIRST_FD + len(high), 4096)


def become(uid, gid):
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def start(request, fds):
    """The steps of a sandbox's start, in order, in the forked child."""
    *passed, errors = fds
    try:
        os.dup2(errors, 1)
        os.dup2(errors, 2)
        os.setsid()
        os.chdir("/")
        os.umask(0o022)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        join_cgroups(request["cgroups"])
        if request.get("stage"):
            build_stage(request)
        place_fds(passed)
        if request.get("uid") is not None:
            become(request["uid"], request["gid"])
        os.execve(request["argv"][0], request["argv"], request["env"])
    except OSError as error:
        os.write(2, ("launcher: %s\n" % error).encode())
    finally:
        os._exit(125)


def receive(sock):
    data, fds, _, _ = socket.recv_fds(sock, MAX_MESSAGE, 16)
    return (json.loads(data) if data else None), fds


def handle(sock):
    request, fds = receive(sock)
    if request is None:
        return False
    try:
        pid = os.fork()
    except OSError as error:
        sock.send(json.dumps({"id": request["id"], "error": str(error)}).encode())
    else:
        if pid == 0:
            start(request, fds)
        sock.send(json.dumps({"id": request["id"], "pid": pid}).encode())
    for fd in fds:
        os.close(fd)
    return True


def reap(sock):
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        sock.send(json.dumps({"exited": pid, "status": os.waitstatus_to_exitcode(status)}).encode())


def main():
    sock = socket.socket(fileno=3)
    os.set_inheritable(3, False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a Ctrl-C at the terminal is the host's to handle
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.register(reader, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == reader:
                os.read(reader, 4096)
                reap(sock)
            elif not handle(sock):
                return


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        sys.exit(0)
