#!/bin/sh
# Build the engines of a bundle on this device; installs devit first where there is none. See --help.
set -eu

usage() {
    cat <<'TEXT'
usage: build-engines.sh BUNDLE [OPTIONS]

Examine this device (devit doctor), then build the engines of a bundle on it and check them (devit build).
Takes the devit on the PATH; where there is none, makes a virtual environment and installs devit into it.

  BUNDLE              bundle folder from devit export
  --submodels N,...   submodels to build, comma separated (default: all)
  --baseline          build the baseline model too (default: no)
  --precision NAME    lowest precision: fp8, int8, fp16 or fp32 (default: devit build's)
  --prefer NAME       measure every variant and keep the best by latency, energy or accuracy (default: devit build's)
  --cuda NAME         pycuda, cuda-bindings or ctypes (default: devit build's)
  --allowed-signers FILE
                      refuse a bundle that none of these signed, or an older one (default: take any)
  --allow-older       with --allowed-signers: go back to an older bundle on purpose (default: no)
  --store DIR         engine store (default: ~/.cache/devit/engines)
  --venv DIR          virtual environment to take or make (default: .venv in the clone that holds this script)
  --json              print the engines as JSON on standard output
  --help              show this message

Environment: DEVIT_ROOT is read in the place of / to know the device (default: /).
Exit codes: 0 done, 1 a named failure, 2 wrong usage.
TEXT
}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

wrong_usage() {
    printf 'usage: build-engines.sh BUNDLE [OPTIONS], see --help\nerror: %s\n' "$1" >&2
    exit 2
}

# Prints the major number of Jetson Linux, or nothing on anything but a Jetson.
jetson_release() {
    sed -n '1s/^# R\([0-9][0-9]*\) .*/\1/p' "${DEVIT_ROOT:-}/etc/nv_tegra_release" 2>/dev/null || :
}

# Virtual environments cannot be moved, so this one is made in place, and removed unless it is whole.
install_devit() {
    clone=$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "$0")")/.." && pwd)
    [ -n "$venv" ] || venv=$clone/.venv
    devit=$venv/bin/devit
    [ ! -x "$devit" ] || return 0

    [ -f "$bundle/manifest.json" ] ||
        fail "$bundle: expected a bundle from devit export, found no manifest.json in it: name another folder"
    [ -f "$clone/pyproject.toml" ] ||
        fail "$clone: expected devit's repository, found no pyproject.toml: run this script from its place in a clone"
    release=$(jetson_release)
    case $release in
    '') extras=agent ;;
    [0-9] | [12][0-9] | 3[0-5])
        fail "expected JetPack 6.0 or later, found L4T $release, whose TensorRT has no LayerNormalization: flash JetPack 6"
        ;;
    36 | 37) extras=agent,jetson6 ;;
    *) extras=agent,jetson7 ;;
    esac
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "expected python3 to be Python 3.10 or later, found $(python3 --version 2>&1 || :): put a later one on the PATH"

    mkdir -p -- "$(dirname -- "$venv")" || fail "$venv: cannot be made: choose another place with --venv"
    mkdir -- "$venv" ||
        fail "$venv: expected a virtual environment with devit, found none: remove it, or choose another with --venv"
    trap 'rm -rf -- "$venv"; exit 130' INT
    trap 'rm -rf -- "$venv"; exit 143' TERM HUP
    echo "installing devit[$extras] into $venv (about 280 MB)" >&2
    if ! python3 -m venv --system-site-packages "$venv" >&2; then
        rm -rf -- "$venv"
        fail "python3 -m venv failed, as said above: on Debian and Ubuntu run sudo apt install python3-venv"
    fi
    if ! "$venv/bin/python" -m pip install --disable-pip-version-check \
        --constraint "$clone/constraints.txt" "${clone}[$extras]" >&2; then
        rm -rf -- "$venv"
        fail "pip install failed, as said above: check the network, then run this again"
    fi
    trap - INT TERM HUP
}

bundle='' venv='' store=''
# What devit build takes goes to the end of the arguments, until only that is left.
left=$#
while [ "$left" -gt 0 ]; do
    word=$1
    shift
    left=$((left - 1))
    case $word in
    --help | -h)
        usage
        exit 0
        ;;
    --baseline | --allow-older | --json) set -- "$@" "$word" ;;
    --submodels=* | --precision=* | --prefer=* | --cuda=* | --allowed-signers=* | --store=* | --venv=* | \
        --submodels | --precision | --prefer | --cuda | --allowed-signers | --store | --venv)
        name=${word%%=*}
        if [ "$name" != "$word" ]; then
            value=${word#*=}
        else
            [ "$left" -gt 0 ] || wrong_usage "$name: a value is missing"
            value=$1
            shift
            left=$((left - 1))
        fi
        case $name in
        --venv) venv=$value ;;
        --store) store=$value && set -- "$@" "$name" "$value" ;;
        *) set -- "$@" "$name" "$value" ;;
        esac
        ;;
    -*) wrong_usage "unknown option $word" ;;
    *)
        [ -z "$bundle" ] || wrong_usage "expected one bundle, found $bundle and $word"
        bundle=$word
        ;;
    esac
done
[ -n "$bundle" ] || wrong_usage "expected a bundle, found none"

devit=devit
if [ -n "$venv" ] || ! command -v devit >/dev/null; then
    install_devit
fi

# On standard error: standard output belongs to the table, or the JSON, of devit build.
"$devit" doctor ${DEVIT_ROOT:+--root "$DEVIT_ROOT"} ${store:+--store "$store"} >&2
exec "$devit" build "$bundle" "$@"
