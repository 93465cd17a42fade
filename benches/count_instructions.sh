#!/bin/sh
# Instructions that the node spends on a lease pair and on a put of 1 KiB through the native door's rings: the difference between two
# runs of unlike length, under callgrind. Counted is what happens from the checked request to the answer in the client's ring: the door, the
# shard, and what carries out its effects. Looking at rings over and over is not counted, because its share depends on how fast valgrind is;
# taking a record out of a ring and checking it is what `raylet-bench ring --count` counts, for both sides.
#
#     make build && benches/count_instructions.sh
set -eu
cd "$(dirname "$0")/.."
release=target/release
[ -x "$release/raylet-uring" ] && [ -x "$release/raylet-bench" ] || { echo "run 'make build' first" >&2; exit 2; }
command -v valgrind >/dev/null || { echo "valgrind is needed: apt-get install valgrind" >&2; exit 2; }
directory=$(mktemp -d)
node=
finish() {
    [ -z "$node" ] || kill "$node" 2>/dev/null || true
    rm -rf "$directory"
}
trap finish EXIT

cc -O2 -shared -fPIC -o "$directory/let_others_run.so" benches/let_others_run.c -ldl

# What a node collects in a module of the door that serves so many operations: collected OPERATION ROUNDS MODULE
collected() {
    LD_PRELOAD="$directory/let_others_run.so" RAYLET_URING_RUNTIME_DIR="$directory/run" valgrind --fair-sched=yes --tool=callgrind --callgrind-out-file=/dev/null \
        --toggle-collect="raylet_uring::native::$3::request*" "$release/raylet-uring" --busy-poll \
        --socket "$directory/door" --cores 0 --object-store-memory 256M --warm-reserve 0 --resources CPU=1000 \
        --log-level warn >"$directory/out" 2>"$directory/err" &
    node=$!
    # Under valgrind this takes seconds, now and then a minute.
    for _ in $(seq 1800); do
        grep -q '^ready$' "$directory/out" && break
        kill -0 "$node" 2>/dev/null || { cat "$directory/err" >&2; exit 1; }
        sleep 0.1
    done
    grep -q '^ready$' "$directory/out" || { echo "the node was not ready after 3 minutes" >&2; exit 1; }
    "$release/raylet-bench" "$1" --socket "$directory/door" --paths ring --in-flight 64 --rounds "$2" >"$directory/bench"
    kill "$node"
    wait "$node" || true
    node=
    sed -n 's/.*Collected : *//p' "$directory/err"
}

for pair in lease:leases put:objects; do
    operation=${pair%:*} module=${pair#*:}
    few=$(collected "$operation" 20480 "$module")
    many=$(collected "$operation" 61440 "$module")
    echo "$operation: $(((many - few) / 40960)) instructions of the node"
done
