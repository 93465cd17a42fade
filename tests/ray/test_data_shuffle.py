"""Ray Data shuffles more than the store holds, and every row comes out as it went in.

`make test-shuffle` does it at full size (2 GiB through a store of 512 MiB); `make test` shuffles an eighth of that.
"""

import os

import numpy as np
import pytest
import ray

from harness import MIB

#: What is shuffled; the store has a quarter of it, but at least what Ray asks for.
TOTAL_MIB = int(os.environ.get("RAYLET_SHUFFLE_MIB", 256))
ROW_BYTES = 64 * 1024
ROWS = TOTAL_MIB * MIB // ROW_BYTES
BLOCKS = max(16, TOTAL_MIB // 16)
NODE = {"num_cpus": 2, "object_store_memory": max(TOTAL_MIB // 4, 80) * MIB}

pytestmark = [pytest.mark.usefixtures("node"), pytest.mark.timeout(120 if TOTAL_MIB <= 256 else 900)]


def payload(number):
    """The bytes of a row, which only its number gives."""
    return np.random.Philox(number).random_raw(ROW_BYTES // 8)


def filled(batch):
    return {"id": batch["id"], "payload": np.stack([payload(number) for number in batch["id"]])}


def checked(batch):
    right = [np.array_equal(row, payload(number)) for number, row in zip(batch["id"], batch["payload"])]
    return {"id": batch["id"], "right": np.array(right)}


def test_a_shuffle_of_more_than_the_store_brings_every_row_back(node):
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    before = node.store().spilled_bytes_total
    dataset = ray.data.range(ROWS, override_num_blocks=BLOCKS).map_batches(filled, batch_size=64)
    # Held while it is read again, so that all of it has to be somewhere.
    shuffled = dataset.random_shuffle(seed=5).materialize()
    spilled = node.store().spilled_bytes_total - before
    rows = shuffled.map_batches(checked, batch_size=64).take_all()
    numbers = [row["id"] for row in rows]
    assert all(row["right"] for row in rows), "bytes of some rows are not those that went in"
    assert sorted(numbers) == list(range(ROWS))
    assert numbers != sorted(numbers), "nothing was shuffled"
    assert spilled >= TOTAL_MIB * MIB // 2, f"{spilled} bytes were spilled"
