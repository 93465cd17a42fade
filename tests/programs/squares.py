"""Squares with tasks."""

import ray

from report import main


@ray.remote
def square(x):
    return x * x


def program():
    total = sum(ray.get([square.remote(i) for i in range(100)]))
    assert total == 328_350, total
    return f"sum of 100 squares = {total}"


if __name__ == "__main__":
    main(program)
