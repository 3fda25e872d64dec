#!/bin/bash
# Does this image work, as its own user? For a container of its own: it starts a Ray node, trains on it, and stops it.
set -euo pipefail

[ "$(id -u)" -ne 0 ] || { echo "smoke: this is root, the image's user is not" >&2; exit 1; }
runs=$(mktemp -d -p "$HOME")
emc2dist validate jobs/quickstart.yaml > /dev/null

bash -lc 'ray start --head --num-cpus=2 --object-store-memory=200000000'  # a login shell, as KubeRay's may be
trap 'ray stop > /dev/null; rm -rf "$runs"' EXIT
wget --quiet --tries=30 --waitretry=1 --retry-connrefused --output-document=- http://localhost:52365/api/healthz
echo

RAY_ADDRESS=auto emc2dist train jobs/quickstart.yaml epochs=1 data.limit=128 run_dir="$runs"
echo "smoke: passed"
