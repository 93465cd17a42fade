"""More data than the store holds: objects go to disk and come back as they were, and their files end with them."""

import gc
import json
import pathlib
import random
import tempfile

import numpy as np
import pytest
import ray

from harness import MIB, OURS, change_bytes, get, wait_until

STORE = 100 * MIB

_DIRECTORIES = [tempfile.TemporaryDirectory(prefix="ru-spill-") for _ in range(2)]
DIRECTORIES = [pathlib.Path(directory.name) for directory in _DIRECTORIES]

NODE = {
    "num_cpus": 2,
    "object_store_memory": STORE,
    "_system_config": {
        "object_spilling_config": json.dumps(
            {"type": "filesystem", "params": {"directory_path": [str(directory) for directory in DIRECTORIES]}}
        ),
    },
}

pytestmark = pytest.mark.usefixtures("node")


def array(seed, nbytes=10 * MIB):
    """Bytes that only this seed gives."""
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


def put_all(count, nbytes=10 * MIB):
    return [ray.put(array(seed, nbytes)) for seed in range(count)]


def assert_reads(refs, order, nbytes=10 * MIB):
    for seed in order:
        value = get(refs[seed], 120)
        assert np.array_equal(value, array(seed, nbytes)), f"object {seed} is not what was put"
        del value


def files():
    """Files of spilled objects, in all directories."""
    return [path for directory in DIRECTORIES for path in directory.glob("ray_spilled_objects_*/*")
            if not path.name.startswith(".")]


def test_puts_beyond_the_store_come_back_in_any_order(node):
    before = node.store()
    refs = put_all(35)
    spilled = node.store().spilled_bytes_total - before.spilled_bytes_total
    assert spilled >= 35 * 10 * MIB - STORE, f"{spilled} bytes were spilled"
    order = list(range(35))
    assert_reads(refs, order)
    assert_reads(refs, reversed(order))
    random.Random(7).shuffle(order)
    assert_reads(refs, order)
    after = node.store()
    assert after.restored_bytes_total - before.restored_bytes_total >= 2 * (35 * 10 * MIB - STORE)
    assert after.spill_time_total_s > 0 and after.restore_time_total_s > 0
    # Each Python process of stock Ray chooses for itself.
    used = {directory for directory in DIRECTORIES for path in files() if directory in path.parents}
    assert len(used) == 2 if OURS else used, f"{used} of {DIRECTORIES} are used"


def test_results_of_tasks_and_arguments_that_were_spilled():
    @ray.remote
    def make(seed):
        return array(seed)

    @ray.remote
    def same(value, seed):
        return bool(np.array_equal(value, array(seed)))

    refs = [make.remote(seed) for seed in range(20)]
    ready, _ = ray.wait(refs, num_returns=20, timeout=120, fetch_local=False)
    assert len(ready) == 20
    assert all(get([same.remote(ref, seed) for seed, ref in enumerate(refs)], 120))
    assert_reads(refs, range(20))


def test_several_readers_at_once():
    refs = put_all(20)

    @ray.remote
    class Reader:
        def wrong(self, refs, order):
            found = []
            for seed in order:
                if not np.array_equal(ray.get(refs[seed], timeout=120), array(seed)):
                    found.append(seed)
            return found

    readers = [Reader.remote() for _ in range(2)]
    forward = list(range(20))
    answers = [reader.wrong.remote(refs, order) for reader, order in zip(readers, (forward, forward[::-1]))]
    assert get(answers, 200) == [[], []]


def test_wait_brings_spilled_objects_back():
    refs = put_all(20)
    ready, missing = ray.wait(refs[:5], num_returns=5, timeout=120)
    assert (len(ready), missing) == (5, [])
    assert_reads(refs, range(5))


def test_owner_knows_what_was_spilled(node):
    refs = put_all(20)
    found = lambda: [place["did_spill"] for place in ray.experimental.get_object_locations(refs).values()]
    wait_until(lambda: sum(found()) >= 10, "the owner knows of ten spilled objects or more")
    summary = ray._private.internal_api.memory_summary(node.address, stats_only=True)
    assert "Spilled" in summary and "Restored" in summary, summary


def test_small_objects_share_files():
    refs = put_all(1500, MIB // 8)
    assert_reads(refs, range(0, 1500, 7), MIB // 8)
    count = len(files())
    assert 0 < count < 100, f"{count} files"


def test_files_end_with_their_objects(node):
    refs = put_all(25)
    assert files()
    kept = refs[3]
    del refs
    gc.collect()
    # What shares a file with a living object may stay.
    wait_until(lambda: sum(path.stat().st_size for path in files()) <= STORE, "only what shares the file is left")
    assert np.array_equal(get(kept), array(3))
    del kept
    gc.collect()
    wait_until(lambda: not files(), "no file is left when no object is")
    node.wait_for_store_below(MIB, "no object is left")


def test_no_python_process_spills_for_us(node):
    refs = put_all(20)
    assert_reads(refs, range(20))
    kinds = [" ".join(process.cmdline()) for process in node.workers()]
    of_io = [kind for kind in kinds if "SpillWorker" in kind or "RestoreWorker" in kind or "SPILL" in kind]
    if OURS:
        assert not of_io, of_io
    else:
        assert kinds


def test_changed_bytes_are_never_handed_out():
    refs = put_all(20)
    changed = files()
    assert changed
    for path in changed:
        change_bytes(path)
    lost = 0
    for seed, ref in enumerate(refs):
        try:
            value = get(ref, 120)
            # The stock raylet checks nothing.
            assert not OURS or np.array_equal(value, array(seed)), f"object {seed} came back changed"
            del value
        except ray.exceptions.ObjectLostError:
            lost += 1
    assert not OURS or lost > 5, "what was on disk only is lost, and says so"


def test_more_than_the_store_in_use_at_once(node):
    """What is in use can't be spilled: further objects go to files of their own, and those end too."""
    refs = put_all(16)
    values = get(refs, 300)
    for seed, value in enumerate(values):
        assert np.array_equal(value, array(seed)), f"object {seed}"
    assert node.store().object_store_bytes_fallback > 0
    more = ray.put(array(100))
    assert np.array_equal(get(more), array(100))
    del values, value, more, refs
    gc.collect()
    wait_until(lambda: node.store().object_store_bytes_fallback == 0, "no file beside the store is left")
    again = put_all(8)
    assert_reads(again, range(8))
