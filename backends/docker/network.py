"""`network="open"`: a bridge that reaches the outside and neither the host, nor other containers, nor private addresses."""

from __future__ import annotations

import os
import shutil
import subprocess

import docker
import docker.errors

from workspace.errors import NotSupported

NAME = "workspace-open"
BRIDGE = "ws-open0"
PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")


def ensure(client: docker.DockerClient) -> None:
    """The network and its firewall rules, made where they are missing; raises `NotSupported` where they cannot be."""
    iptables = shutil.which("iptables", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if os.geteuid() != 0 or iptables is None:
        raise NotSupported("network='open' needs firewall rules on the engine's host: root and iptables; without them use network='none'")
    try:
        client.api.inspect_network(NAME)
    except docker.errors.NotFound:
        options = {"com.docker.network.bridge.name": BRIDGE, "com.docker.network.bridge.enable_icc": "false"}
        client.api.create_network(NAME, driver="bridge", options=options, enable_ipv6=False, labels={"workspace-runtime": "network"})
    _rule(iptables, "INPUT", ["-i", BRIDGE, "-j", "DROP"])
    for address in PRIVATE:
        _rule(iptables, "DOCKER-USER", ["-i", BRIDGE, "-d", address, "-j", "DROP"])


def _rule(iptables: str, chain: str, rule: list[str]) -> None:
    """Puts a rule first in its chain, once."""
    there = subprocess.run([iptables, "-w", "-C", chain, *rule], capture_output=True, check=False)
    if there.returncode:
        done = subprocess.run([iptables, "-w", "-I", chain, *rule], capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotSupported(f"network='open' needs a firewall rule that cannot be set: {done.stderr.strip()[-200:]}")
