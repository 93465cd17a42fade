"""One large ray.put, used by a hundred tasks."""

import numpy as np
import ray

from report import main


@ray.remote
def part(array, i):
    return int(array[i::100].sum())


def program():
    array = np.arange(12_500_000, dtype=np.int64)
    ref = ray.put(array)
    total = sum(ray.get([part.remote(ref, i) for i in range(100)]))
    assert total == int(array.sum()), total
    return f"100 tasks over {array.nbytes // 10**6} MB = {total}"


if __name__ == "__main__":
    main(program)
