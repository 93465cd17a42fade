"""When memory runs short, the raylet ends a task rather than let the machine swap or the kernel choose."""

import os

import numpy as np
import psutil
import pytest
import ray

from harness import MIB, get

TOTAL = psutil.virtual_memory().total
#: What may still be taken before the node counts as short of memory, and what the greedy task takes.
MARGIN, GREED = int(TOTAL * 0.07), int(TOTAL * 0.14)


def NODE():
    """The monitor acts above the memory used when the node starts plus the margin."""
    threshold = (TOTAL - psutil.virtual_memory().available + MARGIN) / TOTAL
    return {"num_cpus": 2, "_system_config": {"memory_usage_threshold": threshold, "memory_monitor_refresh_ms": 100}}


pytestmark = pytest.mark.usefixtures("node")


@ray.remote(max_retries=0)
def take(size_bytes, hold_s):
    """Takes memory and holds it for so long."""
    kept = []
    while sum(block.nbytes for block in kept) < size_bytes:
        kept.append(np.ones(32 * MIB, dtype=np.uint8))
    import time
    time.sleep(hold_s)
    return os.getpid()


def test_greedy_task_is_ended_with_the_reason():
    with pytest.raises(ray.exceptions.OutOfMemoryError) as raised:
        get(take.remote(GREED, 90), 100)
    assert "memory" in str(raised.value).lower() and "threshold" in str(raised.value).lower(), str(raised.value)


def test_modest_task_is_left_alone():
    assert get(take.remote(64 * MIB, 3))
