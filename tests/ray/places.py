"""Tasks that say where they run."""

import os

import ray

import harness


@ray.remote(num_cpus=1)
def where():
    """The node that it runs on."""
    return ray.get_runtime_context().get_node_id()


@ray.remote(num_cpus=1)
def meet(directory, count):
    """Returns its node once `count` tasks run at the same time."""
    open(os.path.join(directory, ray.get_runtime_context().get_task_id()), "w").close()
    harness.wait_until(lambda: len(os.listdir(directory)) >= count, f"{count} tasks run together")
    return ray.get_runtime_context().get_node_id()
