"""Ray's libraries on top: Data, Tune, Serve, each in a small real program."""

import json
import os
import urllib.request

import pytest
import ray

from harness import free_port, wait_until

NODE = {"num_cpus": 4, "object_store_memory": 400 << 20}
#: Serve replaces a proxy that is not up in 5 s, which a busy two-core machine does not always manage.
ENVIRONMENT = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "40"}

pytestmark = [pytest.mark.usefixtures("node"), pytest.mark.timeout(180)]


def test_data_range_map_batches():
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.range(10_000, override_num_blocks=8).map_batches(lambda batch: {"double": batch["id"] * 2})
    assert dataset.sum("double") == 9_999 * 10_000
    assert dataset.filter(lambda row: row["double"] % 3 == 0).count() == 3334
    assert [row["double"] for row in dataset.take(3)] == [0, 2, 4]


def test_data_shuffle_and_group():
    import ray.data

    dataset = ray.data.range(1_000, override_num_blocks=4)
    assert sorted(row["id"] for row in dataset.random_shuffle(seed=7).take_all()) == list(range(1_000))
    counted = dataset.map(lambda row: {"rest": row["id"] % 7}).groupby("rest").count().take_all()
    assert {row["rest"]: row["count()"] for row in counted} == {rest: 1_000 // 7 + (rest < 1_000 % 7) for rest in range(7)}


def test_tune_small_grid(tmp_path):
    """Each trial runs in a placement group; all of them are given back (conftest's `conserved` looks)."""
    from ray import tune

    def trial(config):
        tune.report({"score": config["x"] ** 2 - config["y"]})

    tuner = tune.Tuner(
        trial,
        param_space={"x": tune.grid_search([1, 2, 3]), "y": tune.grid_search([0, 10])},
        tune_config=tune.TuneConfig(metric="score", mode="max", max_concurrent_trials=3),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    )
    results = tuner.fit()
    assert results.num_errors == 0 and len(results) == 6
    assert sorted(result.metrics["score"] for result in results) == [-9, -6, -1, 1, 4, 9]
    assert results.get_best_result().config == {"x": 3, "y": 0}


def test_serve_answers_http():
    from ray import serve

    @serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0.5})
    class Greeter:
        async def __call__(self, request):
            body = await request.json()
            return {"greeting": f"Hello, {body['name']}", "replica": os.getpid()}

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(Greeter.bind(), name="greeter", route_prefix="/greet")

        def ask(name):
            request = urllib.request.Request(f"http://127.0.0.1:{port}/greet", data=json.dumps({"name": name}).encode())
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read())

        replicas = set()

        def both_replicas_answered():
            answer = ask("World")
            assert answer["greeting"] == "Hello, World"
            replicas.add(answer["replica"])
            return len(replicas) == 2

        wait_until(both_replicas_answered, "both replicas answered")
    finally:
        serve.shutdown()
    wait_until(lambda: not [name for name in named_actors() if name.startswith("SERVE")], "no actor of Serve is left")


def named_actors():
    return [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
