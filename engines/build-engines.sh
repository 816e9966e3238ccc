#!/bin/sh
# Build the engines of a bundle on this device: build-engines.sh BUNDLE [--submodels 0,2] [--baseline] [--store DIR]
set -eu
if ! command -v devit >/dev/null 2>&1; then
    place=$(cd "$(dirname "$0")/.." && pwd)
    echo "error: expected devit on the PATH, found none: run python3 -m pip install '$place[agent]'" >&2
    exit 1
fi
exec devit build "$@"
