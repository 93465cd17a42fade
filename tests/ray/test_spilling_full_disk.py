"""A disk for spilled objects that is too small: an error in time, nothing lost, and work goes on when there is room again."""

import atexit
import gc
import json
import pathlib
import subprocess
import tempfile
import time

import numpy as np
import pytest
import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError

from harness import MIB, get

STORE = 100 * MIB
DISK = 60 * MIB

#: Ray 2.60 blames the disk when it could not fall back to it, and the store when it could not even try.
FULL = (ObjectStoreFullError, OutOfDiskError)


def small_disk():
    """A file system of its own, in memory. Mounting takes root, which the suite's containers have."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="ru-disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", directory], check=True, timeout=60)
    atexit.register(unmount, directory)
    return directory


def unmount(directory):
    subprocess.run(["umount", "-l", directory], check=False, timeout=60)
    directory.rmdir()


def node_settings():
    return {
        "num_cpus": 2,
        "object_store_memory": STORE,
        "_system_config": {
            "object_spilling_config": json.dumps(
                {"type": "filesystem", "params": {"directory_path": str(small_disk())}}
            ),
            "oom_grace_period_s": 1.0,
        },
    }


NODE = node_settings

pytestmark = pytest.mark.usefixtures("node")


def array(seed, nbytes=10 * MIB):
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


def put_until_full():
    """Puts objects until there is no room in memory nor on disk."""
    refs = []
    for seed in range(40):
        try:
            refs.append(ray.put(array(seed)))
        except FULL:
            return refs
    raise AssertionError("40 objects of 10 MiB went into 100 MiB of memory and 60 MiB of disk")


def test_full_disk_is_an_error_and_loses_nothing(node):
    started = time.monotonic()
    refs = put_until_full()
    assert time.monotonic() - started < 120
    assert len(refs) >= 8, "what fits into the memory is let in"
    kept = refs[:5]
    del refs
    gc.collect()
    for seed, ref in enumerate(kept):
        assert np.array_equal(get(ref, 120), array(seed)), f"object {seed}"
    del kept, ref
    gc.collect()
    node.wait_for_store_below(20 * MIB, "freed objects make room")
    again = ray.put(array(1))
    assert np.array_equal(get(again), array(1))
