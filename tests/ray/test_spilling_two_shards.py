"""Spilling on a node whose objects and memory are shared by two cores: the threshold and the room are the node's, the files a core's."""

from test_spilling import (  # noqa: F401  (pytest finds them here)
    NODE,
    pytestmark,
    test_files_end_with_their_objects,
    test_more_than_the_store_in_use_at_once,
    test_puts_beyond_the_store_come_back_in_any_order,
    test_results_of_tasks_and_arguments_that_were_spilled,
    test_several_readers_at_once,
)

#: The stock raylet takes no notice of it.
ENVIRONMENT = {"RAYLET_URING_CORES": "0-1"}
