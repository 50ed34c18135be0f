"""What only container engines have: images, root on request, runtimes, the engine's own ways to end a container."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest
from outside import until
from workspace.backends.docker import images

from workspace import (
    AsyncWorkspace,
    BackendUnavailable,
    InvalidArgument,
    NotSupported,
    Resources,
    StartFailed,
    WorkspaceGone,
    WorkspaceNotFound,
    registry,
)

COMMAND = str(Path(sys.executable).with_name("workspace"))


@pytest.fixture
async def engine(backend: str) -> AsyncIterator[docker.DockerClient]:
    if backend != "docker":
        pytest.skip("containers only")
    client = docker.from_env()
    yield client
    client.close()


def container(client: docker.DockerClient, ws: AsyncWorkspace) -> docker.models.containers.Container:
    return client.containers.get(f"workspace-{ws.id}")


async def test_a_container_removed_from_outside_is_gone_at_once(engine: docker.DockerClient) -> None:
    async with AsyncWorkspace.create("docker") as ws:
        running = asyncio.ensure_future(ws.run("sleep 60"))
        await asyncio.sleep(0)
        await ws.run("true")
        await asyncio.to_thread(container(engine, ws).remove, force=True)
        with pytest.raises(WorkspaceGone):
            await asyncio.wait_for(running, 10)
        with pytest.raises(WorkspaceGone, match="removed"):
            await asyncio.wait_for(ws.run("true"), 10)
        assert not ws.alive


async def test_nothing_is_left_on_the_engine_after_a_temporary_workspace(engine: docker.DockerClient) -> None:
    async with AsyncWorkspace.create("docker") as ws:
        found = container(engine, ws)
        volumes = [mount["Name"] for mount in found.attrs["Mounts"] if mount.get("Destination") in ("/workspace", "/home/user")]
        assert len(volumes) == 2
    assert not [each for each in engine.containers.list(all=True) if each.name == f"workspace-{ws.id}"]
    assert not {volume.name for volume in engine.volumes.list()} & set(volumes)


async def test_the_container_is_hardened_as_its_configuration_says(engine: docker.DockerClient) -> None:
    async with AsyncWorkspace.create("docker", resources=Resources(memory_bytes=256 << 20, pids=64, cpus=1)) as ws:
        config = container(engine, ws).attrs["HostConfig"]
        assert not config["Privileged"]
        assert config["NetworkMode"] == "none"
        assert config["Memory"] == config["MemorySwap"] == 256 << 20
        assert config["PidsLimit"] == 64
        assert not [mount for mount in config["Binds"] if "docker.sock" in mount]
        assert config["LogConfig"]["Type"] in ("none", "")
        info = await ws.info()
        assert info.sandbox.link == "unix socket on a bind mount"
        assert info.sandbox.extra["digest"]


async def test_pause_freezes_and_resume_lets_go_on(engine: docker.DockerClient) -> None:
    async with AsyncWorkspace.create("docker") as ws:
        handle = await ws.commands.start("i=0; while true; do i=$((i+1)); echo $i >n; done")
        assert await until(lambda: True)
        await ws.pause()
        try:
            assert container(engine, ws).status == "paused"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(ws.run("true"))), 0.5)
        finally:
            await ws.resume()
        assert (await asyncio.wait_for(ws.run("echo on"), 10)).stdout == "on\n"
        await handle.kill()


async def test_root_on_request_stays_inside_the_walls(engine: docker.DockerClient) -> None:
    async with AsyncWorkspace.create("docker", user="root") as ws:
        assert (await ws.run("id -u")).stdout == "0\n"
        await ws.run("touch /opt/made && chown 1000 /opt/made", check=True)
        for attempt in (
            "mount -t tmpfs none /mnt",
            "unshare -m true",
            "kill -9 1; sleep 0.2; false",
            "mknod /tmp/d b 8 0",
            "cat /proc/1/mem",
        ):
            assert (await ws.run(attempt)).exit_code != 0, attempt
        status = (await ws.run("grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status")).stdout.split()
        assert int(status[1], 16) & (1 << 21 | 1 << 19 | 1 << 12) == 0  # SYS_ADMIN, SYS_PTRACE, NET_ADMIN
        assert (status[3], status[5]) == ("1", "2")


async def test_a_read_only_root_admits_writes_to_the_users_places_alone(engine: docker.DockerClient) -> None:
    async with AsyncWorkspace.create("docker", read_only_root=True) as ws:
        await ws.run("echo x >/workspace/a && echo x >~/a && echo x >/tmp/a", check=True)
        assert container(engine, ws).attrs["HostConfig"]["ReadonlyRootfs"]
        assert (await ws.run("echo x >/opt/a")).exit_code != 0


async def test_an_image_without_python_is_a_clear_error_and_leaves_nothing(engine: docker.DockerClient, tmp_path: Path) -> None:
    subprocess.run(["tar", "-C", str(tmp_path), "-cf", str(tmp_path / "empty.tar"), "--files-from", "/dev/null"], check=True)
    engine.api.import_image(str(tmp_path / "empty.tar"), repository="workspace-test-empty", tag="latest")
    before = {volume.name for volume in engine.volumes.list()}, {each.id for each in engine.containers.list(all=True)}
    with pytest.raises(StartFailed, match="python3"):
        await AsyncWorkspace.create("docker", image="workspace-test-empty:latest")
    assert ({volume.name for volume in engine.volumes.list()}, {each.id for each in engine.containers.list(all=True)}) == before


async def test_what_cannot_be_had_is_refused_by_name(engine: docker.DockerClient) -> None:
    with pytest.raises(NotSupported, match="disk_bytes"):
        await AsyncWorkspace.create("docker", resources=Resources(disk_bytes=64 << 20))
    with pytest.raises(NotSupported, match="isolation"):
        await AsyncWorkspace.create("docker", isolation="none")
    with pytest.raises(InvalidArgument, match="user"):
        await AsyncWorkspace.create("docker", user="admin")
    with pytest.raises(WorkspaceNotFound, match="no-such-image"):
        await AsyncWorkspace.create("docker", image="example.com/no-such-image:1")
    with pytest.raises(BackendUnavailable, match="nowhere"):
        await AsyncWorkspace.create("docker", docker_host="unix:///nowhere.sock")


async def test_prune_takes_orphans_of_ours_and_nothing_else(engine: docker.DockerClient) -> None:
    engine.volumes.create("somebody-elses-volume", labels={"theirs": "yes"})
    code = "import time\nfrom workspace import Workspace\nws=Workspace.create('docker')\nprint(ws.id, flush=True)\ntime.sleep(100)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        orphan = (await asyncio.to_thread(process.stdout.readline)).strip()
        process.kill()
        process.communicate()
        name = f"workspace-{orphan}"
        assert await until(lambda: not [each for each in engine.containers.list() if each.name == name], 20)
        assert orphan in await registry.load("docker").prune()
        assert not [each for each in engine.containers.list(all=True) if each.name == name]
        assert "somebody-elses-volume" in {volume.name for volume in engine.volumes.list()}
    finally:
        process.kill()
        engine.volumes.get("somebody-elses-volume").remove()


async def test_an_open_network_reaches_neither_host_nor_neighbours(engine: docker.DockerClient, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.environ.get("DOCKER_HOST"):
        pytest.skip("Podman has no DOCKER-USER chain; the docker run covers it")
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "0.0.0.0", 0)
    port = server.sockets[0].getsockname()[1]
    connect = "import socket,sys;socket.create_connection((sys.argv[1],int(sys.argv[2])),2)"
    try:
        async with AsyncWorkspace.create("docker", network="open") as ws, AsyncWorkspace.create("docker", network="open") as other:
            networks = container(engine, ws).attrs["NetworkSettings"]["Networks"]["workspace-open"]
            neighbour = container(engine, other).attrs["NetworkSettings"]["Networks"]["workspace-open"]["IPAddress"]
            await other.commands.start("python3 -m http.server 8000")
            assert (await ws.run("ip route 2>/dev/null || cat /proc/net/route")).stdout
            for address, number in ((networks["Gateway"], port), (neighbour, 8000), ("169.254.169.254", 80), ("10.0.0.1", 80)):
                result = await ws.run(["python3", "-c", connect, address, str(number)], timeout_s=20)
                assert result.exit_code != 0, address
    finally:
        server.close()


def test_an_image_is_built_from_a_base_and_from_a_dockerfile(engine: docker.DockerClient, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM workspace-test:latest\nRUN echo built >/built\n")
    tag = f"workspace-test-built:{int(time.time())}"
    done = subprocess.run(
        [COMMAND, "image", "build", str(tmp_path), "-t", tag, "-b", "docker"], capture_output=True, text=True, timeout=100
    )
    if os.environ.get("DOCKER_HOST") and done.returncode:
        pytest.skip(f"Podman's builder does not run on this machine: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    result = subprocess.run(
        [COMMAND, "run", "-b", "docker", "--image", tag, "--", "cat", "/built"], capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "built\n", result.stderr
    refused = subprocess.run(
        [COMMAND, "image", "build", "--from", "x; rm -rf /", "-b", "docker"], capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 125


async def test_a_link_through_the_engine_serves_where_no_files_are_shared(
    engine: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine on another machine sees none of our directories. The real engine and the real relay; only that answer is set."""
    prepare = images.prepare
    monkeypatch.setattr(images, "prepare", lambda *about: replace(prepare(*about), shares_files=False))
    async with AsyncWorkspace.create("docker") as ws:
        assert (await ws.info()).sandbox.link == "relay through the engine"
        content = os.urandom(3_000_000)
        await ws.files.write("f", content)
        assert await ws.files.read("f") == content
        async with AsyncWorkspace.connect(ws.id) as other:
            assert (await other.run("ls")).stdout == "f\n"
        assert (await ws.run("ls /run/workspace")).exit_code != 0
        connect = "import socket; socket.socket(socket.AF_UNIX).connect('/run/workspace/sock')"
        assert "PermissionError" in (await ws.run(["python3", "-c", connect])).stderr
    name = f"workspace-{ws.id}"
    assert await until(lambda: not [each for each in engine.containers.list(all=True) if each.name == name], 20)
