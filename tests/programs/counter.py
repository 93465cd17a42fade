"""The Counter actor."""

import ray

from report import main


@ray.remote
class Counter:
    def __init__(self):
        self.value = 0

    def increment(self):
        self.value += 1
        return self.value


def program():
    counter = Counter.remote()
    last = ray.get([counter.increment.remote() for _ in range(1000)])[-1]
    assert last == 1000, last
    return f"counted to {last}"


if __name__ == "__main__":
    main(program)
