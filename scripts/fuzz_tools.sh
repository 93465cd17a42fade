#!/bin/sh
# What fuzzing needs beyond the stable toolchain: a nightly compiler and cargo-fuzz.
set -eu
command -v rustup >/dev/null || { echo "fuzz: rustup is missing, which installs the nightly compiler that cargo-fuzz needs" >&2; exit 1; }
rustup toolchain list | grep -q '^nightly' || rustup toolchain install nightly --profile minimal
cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
