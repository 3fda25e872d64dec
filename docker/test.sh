#!/bin/bash
# Builds the cpu target without registry or daemon and runs its smoke command as its user.
# What takes long to fetch, Debian and the wheels, stays in IMAGE_CACHE; the images themselves go when this ends.
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(uname) $(id -u)" = "Linux 0" ] || { echo "image-test: needs Linux and root" >&2; exit 1; }
for tool in buildah debootstrap; do
    command -v $tool > /dev/null || { echo "image-test: needs $tool: apt-get install buildah debootstrap" >&2; exit 1; }
done

cache=${IMAGE_CACHE:-${TMPDIR:-/tmp}/emc2dist-images}
wheels=$cache/wheels
mkdir -p "$wheels"
scratch=$(mktemp -d -p "$cache")
export BUILDAH_ISOLATION=chroot
# Plain copies and a chroot: the two that work in any container and leave no mounts behind.
buildah=(buildah --storage-driver vfs --root "$scratch/root" --runroot "$scratch/run")
trap 'rm -rf --one-file-system "$scratch"' EXIT

if [ ! -e "$cache/base.tar" ]; then
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$scratch/base"
    tar -C "$scratch/base" -cf "$cache/base.tar.part" . && mv "$cache/base.tar.part" "$cache/base.tar"
    rm -rf "$scratch/base"
fi
base=$("${buildah[@]}" from scratch)
"${buildah[@]}" add --quiet "$base" "$cache/base.tar" / > /dev/null
"${buildah[@]}" commit --quiet --rm "$base" localhost/base:bookworm > /dev/null

# Few retries: where there is no such index, PIP_FIND_LINKS may still hold torch.
"${PYTHON:-python3}" docker/dependencies.py > "$scratch/dependencies.txt"
"${PYTHON:-python3}" -m pip download --quiet --retries 1 --python-version 3.11 --only-binary :all: --dest "$wheels" \
    --extra-index-url "${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" --find-links "$wheels" \
    -c constraints.txt -r "$scratch/dependencies.txt" "setuptools>=77"
printf '[global]\nno-index = true\nfind-links = /mnt\n' > "$scratch/pip.conf"

"${buildah[@]}" bud --format docker --pull-never --file docker/Dockerfile --target cpu --tag emc2dist:cpu \
    --build-arg BASE=localhost/base:bookworm --volume "$wheels:/mnt:ro" --volume "$scratch/pip.conf:/etc/pip.conf:ro" .
image=$("${buildah[@]}" from --pull-never emc2dist:cpu)

files=$("${buildah[@]}" mount "$image")
# virtualenv has wheels of its own, for the environments that it makes.
left=$(comm -12 <(ls "$wheels") <(find "$files" -name '*.whl' -not -path '*/virtualenv/*' -printf '%f\n' | sort))
[ -z "$left" ] || { echo "image-test: wheels were left in the image: $left" >&2; exit 1; }
echo "image-test: the image has $(du -sm "$files" | cut -f1) MB"

# A network and processes of its own, as a container has: `ray stop` must not reach the Ray of anybody else.
unshare --net --pid --fork --mount --mount-proc --kill-child bash -c 'ip link set lo up; exec "$@"' _ \
    "${buildah[@]}" run "$image" emc2dist-smoke
