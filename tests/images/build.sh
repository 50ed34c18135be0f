#!/usr/bin/env bash
# Builds the image that the tests run in, from Debian's packages: CI has no image registry.
# usage: build.sh ENGINE… (docker, podman)       result: workspace-test:latest on each engine
set -euo pipefail
cache=${WORKSPACE_IMAGE_CACHE:-/var/cache/workspace-test}
packages=python3,bash,coreutils,procps,util-linux,ca-certificates
if [ ! -e "$cache/rootfs.tar" ]; then
    mkdir -p "$cache"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    debootstrap --variant=minbase --include="$packages" bookworm "$work/root" >"$cache/debootstrap.log" 2>&1 ||
        { tail -20 "$cache/debootstrap.log"; exit 1; }
    rm -rf "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/* "$work"/root/etc/apt/sources.list*
    tar -C "$work/root" -cf "$cache/rootfs.tar.new" .
    mv "$cache/rootfs.tar.new" "$cache/rootfs.tar"
fi
for engine in "$@"; do
    if ! "$engine" image inspect workspace-test:latest >/dev/null 2>&1; then
        "$engine" import "$cache/rootfs.tar" workspace-test:latest >/dev/null
    fi
done
