"""Ray Data: a range mapped in batches."""

import ray.data

from report import main


def program():
    ray.data.DataContext.get_current().enable_progress_bars = False
    doubled = ray.data.range(100_000, override_num_blocks=4).map_batches(lambda batch: {"id": batch["id"] * 2})
    total = doubled.sum("id")
    assert total == 9_999_900_000, total
    return f"sum of 100000 doubled rows = {total}"


if __name__ == "__main__":
    main(program)
