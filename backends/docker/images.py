"""Images, and the guest in them: a read-only volume per image, filled once and compiled by the image's own Python."""

from __future__ import annotations

import io
import json
import secrets
import tarfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import docker.errors

from workspace.bundle import GUEST_PACKAGE, guest_sources, guest_version
from workspace.errors import BackendError, StartFailed, WorkspaceNotFound, printable

from . import engine

GUEST_DIR = "/run/workspace-guest"
LABEL = "workspace-runtime"
PODMAN_PROCESSES = 32768
PREPARE = f"""
import sys
if sys.version_info < (3, 8):
    sys.exit("python3 is %d.%d, the guest needs 3.8" % sys.version_info[:2])
import compileall, json, os, py_compile
compileall.compile_dir("{GUEST_DIR}", quiet=1, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
print(json.dumps({{"shared": os.path.exists("/run/workspace-shared/" + sys.argv[1])}}))
"""
REMEDY = "use an image with python3 (3.8 or newer), or build one: workspace image build --from IMAGE --package python3"


@dataclass(frozen=True)
class Prepared:
    """An image that is ready to run workspaces."""

    id: str
    digest: str
    env: tuple[tuple[str, str], ...]
    guest_volume: str
    shares_files: bool
    """The engine sees this machine's files: a unix socket in a bind mount can be the link."""


_prepared: dict[tuple[str | None, str], Prepared] = {}
_guard = threading.Lock()


def prepare(host: str | None, image: str, shared: Path) -> Prepared:
    """Pulls the image where it is missing and puts the guest beside it; blocking."""
    client = engine.client(host)
    found = _inspect(client, host, image)
    key = (host, found["Id"])
    with _guard:
        if key not in _prepared:
            _prepared[key] = _prepare(client, host, found, shared)
        return _prepared[key]


def _inspect(client: docker.DockerClient, host: str | None, image: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = client.api.inspect_image(image)
    except docker.errors.ImageNotFound:
        pull(host, image)
        found = engine.blocking(host, client.api.inspect_image, image)
    except docker.errors.DockerException as error:
        raise engine.translate(error, host) or error from error
    return found


def pull(host: str | None, image: str, progress: Any = None) -> None:
    """Pulls, with credentials from Docker's own configuration; `progress(text)` is told each step."""
    client = engine.client(host)
    repository, _, tag = image.rpartition(":") if ":" in image.rpartition("/")[2] else (image, "", "latest")
    try:
        for step in client.api.pull(repository, tag=tag, stream=True, decode=True):
            if "error" in step:
                raise WorkspaceNotFound(f"the image {image!r} cannot be pulled: {printable(str(step['error'])[:300])}")
            if progress is not None:
                progress(printable(f"{step.get('status', '')} {step.get('id', '')} {step.get('progress', '')}").strip())
    except docker.errors.DockerException as error:
        text = printable(str(error)[:300])
        raise WorkspaceNotFound(f"the image {image!r} is not on this engine and cannot be pulled: {text}") from error


def _prepare(client: docker.DockerClient, host: str | None, found: dict[str, Any], shared: Path) -> Prepared:
    volume = f"workspace-guest-{guest_version()}-{found['Id'].rpartition(':')[2][:12]}"
    marker = f"{volume}-ready"
    known = _volume_labels(client, host, marker)
    if known is None:
        shares = _fill(client, host, found["Id"], volume, shared)
        labels = {LABEL: "guest-ready", f"{LABEL}.shares-files": str(int(shares))}
        engine.blocking(host, client.api.create_volume, marker, labels=labels)
    else:
        shares = known.get(f"{LABEL}.shares-files") == "1"
    digests = found.get("RepoDigests") or [found["Id"]]
    env = tuple(_pair(entry) for entry in (found.get("Config") or {}).get("Env") or [])
    return Prepared(found["Id"], digests[0], env, volume, shares)


def _pair(entry: str) -> tuple[str, str]:
    name, _, value = entry.partition("=")
    return name, value


def _volume_labels(client: docker.DockerClient, host: str | None, name: str) -> dict[str, str] | None:
    try:
        return dict(engine.blocking(host, client.api.inspect_volume, name).get("Labels") or {})
    except WorkspaceNotFound:
        return None


def _fill(client: docker.DockerClient, host: str | None, image: str, volume: str, shared: Path) -> bool:
    """Whether the engine shares files with us. Leaves nothing where the image has no Python."""
    shared.mkdir(mode=0o700, parents=True, exist_ok=True)
    nonce = shared / f".probe-{secrets.token_hex(8)}"
    nonce.touch()
    engine.blocking(host, client.api.create_volume, volume, labels={LABEL: "guest"})
    try:
        said = _run_prepare(client, host, image, f"{volume}:{GUEST_DIR}", shared, nonce.name)
    except BaseException:
        engine.blocking(host, client.api.remove_volume, volume, force=True)
        raise
    finally:
        nonce.unlink()
    return bool(said["shared"])


def _run_prepare(client: docker.DockerClient, host: str | None, image: str, bind: str, shared: Path, nonce: str) -> dict[str, Any]:
    try:
        return _run_once(client, host, image, [bind, f"{shared}:/run/workspace-shared:ro"], nonce)
    except docker.errors.APIError as error:
        text = str(error.explanation or error)
        if "executable file not found" in text or "no such file" in text.lower():
            raise StartFailed(f"the image has no python3, which the guest needs; {REMEDY}") from error
        if str(shared) in text:  # an engine on another machine
            return _run_once(client, host, image, [bind], nonce)
        raise engine.translate(error, host) or error from error


def _run_once(client: docker.DockerClient, host: str | None, image: str, binds: list[str], nonce: str) -> dict[str, Any]:
    limits = [ulimit("nofile", 1024), *processes_ulimit(host)]
    config = client.api.create_host_config(binds=binds, network_mode="none", log_config={"type": "json-file"}, ulimits=limits)
    command = ["python3", "-I", "-S", "-c", PREPARE, nonce]
    labels = {LABEL: "prepare"}
    made = client.api.create_container(image, entrypoint=command, command=[], user="0", host_config=config, labels=labels)
    try:
        client.api.put_archive(made["Id"], GUEST_DIR, guest_tar())
        client.api.start(made["Id"])
        status = client.api.wait(made["Id"])["StatusCode"]
        output = client.api.logs(made["Id"]).decode("utf-8", "replace")
    finally:
        client.api.remove_container(made["Id"], force=True, v=False)
    if status in (126, 127):
        raise StartFailed(f"the image has no python3 that runs, which the guest needs; {REMEDY}")
    if status:
        raise StartFailed(f"the image's python3 cannot run the guest: {printable(output.strip()[-300:])}; {REMEDY}")
    try:
        answer: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise BackendError(f"the image's python3 answered {output[-200:]!r}") from None
    return answer


def ulimit(name: str, value: int) -> dict[str, Any]:
    """One rlimit as the engine wants it."""
    return {"Name": name, "Soft": value, "Hard": value}


def processes_ulimit(host: str | None) -> list[dict[str, Any]]:
    """For Podman, whose default is higher than an engine without CAP_SYS_RESOURCE can set. The cgroup's `pids` is what counts."""
    return [ulimit("nproc", PODMAN_PROCESSES)] if engine.is_podman(host) else []


def guest_tar() -> bytes:
    """The guest package as a tar for the engine."""
    return tar({f"{GUEST_PACKAGE}/{name}": source for name, source in guest_sources().items()}, 0o644)


def tar(files: dict[str, bytes], mode: int) -> bytes:
    """Regular files, owned by root."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            archive.addfile(entry, io.BytesIO(data))
        end = archive.offset + 2 * tarfile.BLOCKSIZE
    # Without the padding of whole records: Podman stops reading at the end mark and fails on what still comes.
    return out.getvalue()[:end]
