#!/bin/sh
# Makes a fresh Debian machine ready: system packages, the Rust toolchain's presence, and .venv with Ray.
# Does only what is missing, so that a second call takes no time. PYTHON chooses the interpreter (default: python3).
# `setup.sh package` also installs what making and testing packages needs.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

say() { printf '%s\n' "setup: $*"; }
fail() { say "$*" >&2; exit 1; }

missing=""
need() { # need PACKAGE COMMAND...: notes the Debian package where the command fails
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
need make command -v make
need gcc command -v cc
need libc6-dev test -e /usr/include/stdlib.h
need pkg-config command -v pkg-config
need libhwloc-dev pkg-config --exists hwloc
need openssl command -v openssl
need util-linux command -v unshare
if [ "${1:-}" = package ]; then
    need binutils command -v objcopy
    need dpkg command -v dpkg-deb
    need systemd command -v systemd-analyze
    need strace command -v strace
fi
# venv and pip for the interpreter itself: Debian packs them apart.
if [ ! -x .venv/bin/python ]; then
    need python3-venv "$PYTHON" -c 'import venv, ensurepip'
fi

if [ -n "$missing" ]; then
    command -v apt-get >/dev/null || fail "missing:$missing; this is not Debian, install what corresponds to them"
    as_root=""
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || fail "missing:$missing; run as root: apt-get install$missing"
        as_root=sudo
    fi
    say "installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    $as_root apt-get update -qq </dev/null
    # shellcheck disable=SC2086  # a list of packages
    $as_root apt-get install -y -qq --no-install-recommends $missing </dev/null
fi

command -v cargo >/dev/null || fail "cargo is missing: install a Rust toolchain (rustup.rs), at least the rust-version in Cargo.toml"
command -v "$PYTHON" >/dev/null || fail "$PYTHON is missing: set PYTHON to a Python that Ray 2.60 has a wheel for (3.10 to 3.13)"

stamp=.venv/requirements.installed
if ! cmp -s requirements.txt "$stamp" 2>/dev/null; then
    [ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
    say "installing Ray and the test tools into .venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --progress-bar off -r requirements.txt </dev/null
    cp requirements.txt "$stamp"
fi
say "ready: $(cargo --version), $(.venv/bin/python --version), Ray $(sed -n 's/^ray.*==//p' requirements.txt)"
