#!/bin/sh
# Fuzzes each socket protocol, HTTP/2, the rings and the bulk port's lanes for so many seconds (60 if not said), those of Ray starting from
# recorded frames.
# Needs the nightly toolchain and `cargo install cargo-fuzz`. Ends with an error at the first finding, which cargo-fuzz
# leaves in fuzz/artifacts.
set -eu
seconds=${1:-60}
cd "$(dirname "$0")/.."
for socket in raylet plasma; do
    corpus=fuzz/corpus/${socket}_socket
    mkdir -p "$corpus"
    for frame in tests/fixtures/wire/${socket}_*.hex; do
        python3 -c 'import sys; sys.stdout.buffer.write(bytes.fromhex(sys.stdin.read()))' \
            <"$frame" >"$corpus/$(basename "$frame" .hex)"
    done
    cargo +nightly fuzz run "${socket}_socket" -- -max_total_time="$seconds" -max_len=4096 -print_final_stats=1
done
# The native door has no recorded frames: its messages are found by their structure.
for target in http2 native_socket native_body native_ring bulk_lane; do
    mkdir -p "fuzz/corpus/$target"
    cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -max_len=4096 -print_final_stats=1
done
