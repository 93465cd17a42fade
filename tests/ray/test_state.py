"""What users and dashboards see of the node: `ray status`, `ray list`, `ray memory`, the node page, the metrics."""

import json
import os
import re
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
import ray
from ray.util import state

from harness import MIB, OURS, clean_environment, get, our_binary, wait_until

NODE = {"num_cpus": 3, "num_gpus": 1, "resources": {"slot": 5}, "include_dashboard": True}

pytestmark = [pytest.mark.usefixtures("node"), pytest.mark.timeout(180)]


@ray.remote(num_cpus=1)
class Tenant:
    def pid(self):
        return os.getpid()


def command(node, *arguments):
    """Runs `ray ARGUMENTS` against the node; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", *arguments], capture_output=True, text=True, timeout=60,
        env=clean_environment(RAY_AUTH_MODE=os.environ.get("RAY_AUTH_MODE"), RAY_ADDRESS=node.address),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def state_of(kind, **options):
    """ray.util.state.list_workers and its kin, asked of this node and not of another that may run on the machine."""
    url = f"http://{ray._private.worker._global_node.webui_url}"
    return getattr(state, f"list_{kind}")(address=url, **options)


def http(path):
    """GET from the dashboard, as JSON."""
    request = urllib.request.Request(f"http://{ray._private.worker._global_node.webui_url}{path}")
    request.add_header("Authorization", f"Bearer {open(os.path.expanduser('~/.ray/auth_token')).read().strip()}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def test_ray_status_shows_what_is_used(node):
    tenant = Tenant.options(num_cpus=2, num_gpus=1, resources={"slot": 1.5}).remote()
    get(tenant.pid.remote())

    def used():
        out = command(node, "status")
        return all(text in out for text in ("2.0/3.0 CPU", "1.0/1.0 GPU", "1.5/5.0 slot", "object_store_memory")) and out

    out = wait_until(used, "`ray status` shows the lease")
    assert re.search(r"Active:\n 1 node_", out)


def test_ray_status_shows_demand(node):
    stuck = ray.remote(num_cpus=50)(lambda: 1)
    ref = stuck.remote()
    wait_until(lambda: "{'CPU': 50.0}" in command(node, "status"), "`ray status` shows the demand that can't be met")
    ray.cancel(ref)
    wait_until(lambda: "{'CPU': 50.0}" not in command(node, "status"), "the cancelled demand is gone")


def test_list_nodes(node):
    [entry] = json.loads(command(node, "list", "nodes", "--format", "json"))
    assert entry["state"] == "ALIVE" and entry["is_head_node"] is True
    assert {name: entry["resources_total"][name] for name in ("CPU", "GPU", "slot")} == {"CPU": 3, "GPU": 1, "slot": 5}


def test_list_workers_and_why_they_ended(node):
    """The raylet tells the GCS of each worker, its pid, and what it died of."""
    @ray.remote(max_retries=0)
    def crash(how):
        print(os.getpid(), flush=True)
        if how == "signal":
            os.kill(os.getpid(), 9)
        os._exit(7)

    killed = Tenant.remote()
    living = Tenant.remote()
    killed_pid, living_pid = get([killed.pid.remote(), living.pid.remote()])
    for how in ("signal", "exit"):
        with pytest.raises(ray.exceptions.WorkerCrashedError):
            get(crash.remote(how))
    ray.kill(killed)

    def told():
        workers = {worker.pid: worker for worker in state_of("workers", detail=True, limit=1000)}
        crashed = [worker for worker in workers.values() if worker.exit_type == "SYSTEM_ERROR"]
        return len(crashed) == 2 and workers[killed_pid].exit_type and (workers, crashed)

    workers, crashed = wait_until(told, "deaths of workers told")
    assert workers[living_pid].is_alive and workers[os.getpid()].worker_type == "DRIVER"
    assert workers[killed_pid].exit_type == "INTENDED_SYSTEM_EXIT" and "ray.kill" in workers[killed_pid].exit_detail
    for worker in crashed:
        assert not worker.is_alive
        assert "connection error code 2. End of file" in worker.exit_detail or "unrecoverable failure" in worker.exit_detail
    listed = json.loads(command(node, "list", "workers", "--format", "json", "--limit", "1000"))
    assert {worker["pid"] for worker in listed} >= {killed_pid, living_pid}


def test_list_actors_and_tasks(node):
    tenant = Tenant.options(name="listed").remote()
    pid = get(tenant.pid.remote())

    @ray.remote
    def named_for_the_list():
        return 1

    get(named_for_the_list.remote())
    [actor] = [actor for actor in state_of("actors", detail=True) if actor.name == "listed"]
    assert (actor.pid, actor.state, actor.class_name) == (pid, "ALIVE", "Tenant")
    assert actor.required_resources == {"CPU": 1.0} and actor.node_id == node.record()["NodeID"]

    def finished():
        return [task for task in state_of("tasks", detail=True, limit=1000)
                if task.name == "named_for_the_list" and task.state == "FINISHED"]

    [task] = wait_until(finished, "the finished task is listed")
    assert task.node_id == node.record()["NodeID"] and task.worker_id
    assert "listed" in command(node, "list", "actors", "--detail")


def test_list_objects_and_ray_memory(node):
    ref = ray.put(np.zeros(7 * MIB, dtype=np.uint8))
    entries = {entry.object_id: entry for entry in state_of("objects", detail=True, limit=1000)}
    assert 7 * MIB <= entries[ref.hex()].object_size < 7 * MIB + 4096
    assert entries[ref.hex()].pid == os.getpid()

    # What the tests before it have left may take a moment to be freed.
    out = wait_until(lambda: "Plasma memory usage 7 MiB, 1 objects" in (out := command(node, "memory")) and out, "only it is there")
    assert ref.hex() in out and "LOCAL_REFERENCE" in out


def test_node_page_of_the_dashboard(node):
    """What the node page shows, from GetNodeStats and from the agent: workers, store, addresses."""
    tenant = Tenant.remote()
    pid = get(tenant.pid.remote())
    ref = ray.put(np.zeros(3 * MIB, dtype=np.uint8))
    node_id = node.record()["NodeID"]

    def summary():
        data = http("/nodes?view=summary")["data"]["summary"]
        found = [entry for entry in data if entry.get("raylet", {}).get("nodeId") == node_id]
        # The page is a few seconds old and may still show the larger object of the test before.
        used = int(found[0]["raylet"].get("objectStoreUsedMemory", 0)) if found else 0
        return 3 * MIB <= used < 4 * MIB and found[0]

    entry = wait_until(summary, "the node page shows the object", timeout_s=60, every_s=0.5)
    raylet = entry["raylet"]
    assert raylet["state"] == "ALIVE" and raylet["isHeadNode"] is True
    assert raylet["resourcesTotal"]["CPU"] == 3 and raylet["resourcesTotal"]["slot"] == 5
    assert raylet["nodeManagerPort"] == node.record()["NodeManagerPort"]
    assert int(raylet["storeStats"]["objectStoreBytesAvail"]) == 300 * MIB
    assert 3 * MIB <= int(raylet["storeStats"]["objectStoreBytesUsed"]) < 4 * MIB

    def shows_worker():
        stats = {worker["pid"]: worker for worker in (summary() or raylet_less)["raylet"].get("coreWorkersStats", [])}
        processes = {worker["pid"] for worker in http(f"/nodes/{node_id}")["data"]["detail"].get("workers", [])}
        return pid in stats and pid in processes and os.getpid() in stats and stats

    raylet_less = {"raylet": {}}
    stats = wait_until(shows_worker, "the node's page shows worker and driver", timeout_s=60, every_s=0.5)
    assert stats[pid]["workerType"] == "WORKER" and stats[os.getpid()]["workerType"] == "DRIVER"
    assert http("/api/v0/nodes")["data"]["result"]["total"] == 1
    del ref


def metrics(node):
    """The agent's Prometheus page as {name: [(labels, value)]}."""
    record = node.record()
    url = f"http://{record['NodeManagerAddress']}:{record['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=60) as answer:
        text = answer.read().decode()
    found = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
            found.setdefault(match[1], []).append((labels, float(match[3])))
    return found


def test_metrics_of_node_and_raylet(node):
    """The agent exports its own figures of the machine and those that the raylet sends it."""
    ref = ray.put(np.zeros(9 * MIB, dtype=np.uint8))
    tenant = Tenant.options(num_cpus=2).remote()
    get(tenant.pid.remote())

    def value(found, name, **labels):
        return [number for have, number in found.get(name, []) if labels.items() <= have.items()]

    def complete():
        found = metrics(node)
        return (
            sum(value(found, "ray_object_store_used_memory")) >= 9 * MIB
            and value(found, "ray_resources", Name="CPU", State="USED") == [2.0]
            and found
        )

    found = wait_until(complete, "the raylet's figures have reached the agent", timeout_s=60, every_s=1)
    assert value(found, "ray_node_cpu_count") and value(found, "ray_node_mem_total")[0] > 0
    assert value(found, "ray_resources", Name="CPU", State="AVAILABLE") == [1.0]
    assert value(found, "ray_object_store_available_memory")[0] <= 291 * MIB
    assert value(found, "ray_object_store_num_local_objects")[0] >= 1
    assert sum(value(found, "ray_object_store_memory")) >= 9 * MIB
    assert value(found, "ray_internal_num_processes_started")
    components = {labels["Component"] for labels, _ in found["ray_component_rss_mb"]}
    assert {"raylet", "agent"} <= components
    del ref


def test_our_status_tells_what_was_done_and_how_long_it_took(node):
    """Our command knows a node of ours, with what it did; of a stock one it knows nothing."""
    get([Tenant.options(num_cpus=0).remote().pid.remote() for _ in range(2)])
    get([ray.remote(num_cpus=1)(lambda n: -n).remote(n) for n in range(20)])
    large = ray.put(np.zeros(MIB, dtype=np.uint8))
    assert get(ray.remote(num_cpus=1)(lambda refs: ray.get(refs[0]).nbytes).remote([large])) == MIB
    out = subprocess.run([our_binary(), "status", "--json"], capture_output=True, text=True, timeout=60)
    mine = [status for status in json.loads(out.stdout or "[]") if status["pid"] == node.raylet.pid]
    assert len(mine) == OURS, out
    done = {operation["name"]: operation for status in mine for operation in status["operations"]}
    for name in ("plasma.create", "plasma.seal", "plasma.get", "object.pin", "lease.grant", "lease.return",
                 "worker.start", "worker.register", "control.roundtrip") if OURS else ():
        assert done[name]["count"] > 0 and 0 < done[name]["p50_us"] <= done[name]["p99_us"], (name, done.get(name))
