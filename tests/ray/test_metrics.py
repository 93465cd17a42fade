"""The raylet's figures as the dashboard agent gives them to Prometheus, and the dump of its state beside its logs."""

import json
import os
import re
import subprocess
import time
import urllib.request

import numpy as np
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

import harness
from harness import MIB, OURS, get, wait_until

REPORT_S, DUMP_S = 1, 1
NODE = {
    "num_cpus": 2,
    "resources": {"slot": 3},
    "_system_config": {
        "metrics_report_interval_ms": REPORT_S * 1000,
        "debug_dump_period_milliseconds": DUMP_S * 1000,
    },
}

pytestmark = pytest.mark.usefixtures("node")

#: What every component of Ray adds to its metrics.
COMMON = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId"}

#: Metrics that a raylet always reports, and the labels of its own: as recorded from the stock raylet of Ray 2.60.
ALWAYS = {
    "ray_grpc_server_req_new_total": {"Method"},
    "ray_grpc_server_req_handling_total": {"Method"},
    "ray_grpc_server_req_finished_total": {"Method"},
    "ray_grpc_server_req_succeeded_total": {"Method"},
    "ray_grpc_server_req_process_time_ms_count": {"Method"},
    "ray_internal_num_infeasible_scheduling_classes": set(),
    "ray_internal_num_processes_started": set(),
    "ray_internal_num_spilled_tasks": set(),
    "ray_object_store_available_memory": set(),
    "ray_object_store_fallback_memory": set(),
    "ray_object_store_memory": {"Location", "ObjectState"},
    "ray_object_store_num_local_objects": set(),
    "ray_object_store_used_memory": set(),
    "ray_resources": {"Name", "State"},
    "ray_scheduler_failed_worker_startup_total": {"Reason"},
    "ray_scheduler_tasks": {"State"},
    "ray_scheduler_unscheduleable_tasks": {"Reason"},
    "ray_spill_manager_objects": {"State"},
    "ray_spill_manager_objects_bytes": {"State"},
    "ray_worker_register_time_ms_count": set(),
}


class Page:
    """The agent's Prometheus page: the values whose label `Component` is the raylet."""

    def __init__(self, node):
        record = node.record()
        url = f"http://{record['NodeManagerAddress']}:{record['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=60) as answer:
            text = answer.read().decode()
        self.values = {}
        for line in text.splitlines():
            if match := re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line):
                labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2]))
                if labels.get("Component") == "raylet":
                    self.values.setdefault(match[1], []).append((labels, float(match[3])))

    def sum(self, metric, **labels):
        """Sum of the values that have these labels."""
        return sum(value for have, value in self.values.get(metric, []) if labels.items() <= have.items())


def page_when(node, condition, what):
    """The first page on which `condition` holds."""
    def look():
        page = Page(node)
        return condition(page) and page

    return wait_until(look, what, timeout_s=60, every_s=0.5)


@ray.remote
def work(size_bytes=1):
    return np.ones(size_bytes, dtype=np.uint8)


def test_names_and_labels_are_those_of_a_raylet(node):
    get(work.remote())
    page = page_when(node, lambda page: not ALWAYS.keys() - page.values.keys(), "every metric is there")
    for metric, own in ALWAYS.items():
        for labels, _ in page.values[metric]:
            assert {label for label in labels if not label.startswith("otel_")} - {"le"} == COMMON | own, (metric, labels)
            assert labels["Version"] == ray.__version__ and labels["NodeAddress"] == node.record()["NodeManagerAddress"]


def test_resources_are_those_of_users(node):
    @ray.remote(num_cpus=1, resources={"slot": 2})
    class Tenant:
        def ready(self):
            return True

    tenant = Tenant.remote()
    get(tenant.ready.remote())
    used = page_when(node, lambda page: page.sum("ray_resources", Name="slot", State="USED") == 2, "the lease shows")
    assert used.sum("ray_resources", Name="slot", State="AVAILABLE") == 1
    assert used.sum("ray_resources", Name="CPU", State="USED") == 1
    names = {labels["Name"] for labels, _ in used.values["ray_resources"]}
    assert names == {"CPU", "memory", "object_store_memory", "slot"}
    del tenant
    page_when(node, lambda page: page.sum("ray_resources", Name="slot", State="USED") == 0, "the lease's end shows")


def test_objects_are_told_by_size_and_state(node):
    before = page_when(node, lambda page: "ray_object_store_memory" in page.values, "the first report")
    counted = before.sum("ray_object_store_dist_count", Source="CreatedByWorker")
    kept = [ray.put(np.zeros(size * MIB, dtype=np.uint8)) for size in (5, 40)]
    page = page_when(
        node, lambda page: page.sum("ray_object_store_memory", Location="MMAP_SHM", ObjectState="SEALED") >= 45 * MIB,
        "the objects show",
    )
    page = page_when(
        node, lambda page: page.sum("ray_spill_manager_objects_bytes", State="Pinned") >= 45 * MIB, "the pins show"
    )
    assert page.sum("ray_object_store_num_local_objects") >= 2
    page = page_when(
        node, lambda page: page.sum("ray_object_store_dist_count", Source="CreatedByWorker") >= counted + 2, "sizes show"
    )
    grown = {
        le: page.sum("ray_object_store_dist_bucket", le=le) - before.sum("ray_object_store_dist_bucket", le=le)
        for le in ("33554432.0", "67108864.0")
    }
    assert grown["67108864.0"] - grown["33554432.0"] == 1, "one object between 32 and 64 MiB"
    del kept


def test_what_cannot_run_shows_as_infeasible(node):
    stuck = work.options(num_cpus=64).remote()
    page_when(node, lambda page: page.sum("ray_scheduler_unscheduleable_tasks", Reason="Infeasible") == 1, "it shows")
    ray.cancel(stuck)
    page_when(node, lambda page: page.sum("ray_scheduler_unscheduleable_tasks", Reason="Infeasible") == 0, "it is gone")


def test_calls_are_counted_once(node):
    method = {"Method": "NodeManagerService.grpc_server.GetNodeStats"}
    settled = page_when(node, lambda page: "ray_grpc_server_req_new_total" in page.values, "the first report")
    calls = 5
    for _ in range(calls):
        node.stats()
    names = [f"ray_grpc_server_req_{event}_total" for event in ("new", "finished", "succeeded")]
    names.append("ray_grpc_server_req_process_time_ms_count")

    def all_told(page):
        return all(page.sum(name, **method) >= settled.sum(name, **method) + calls for name in names)

    page_when(node, all_told, "the calls show")
    time.sleep(3 * REPORT_S)
    page = Page(node)
    for name in names:
        assert page.sum(name, **method) == settled.sum(name, **method) + calls, f"{name} grew without a call"


def test_workers_that_die_are_counted_by_name(node):
    @ray.remote(max_retries=0)
    def falls_over():
        os.kill(os.getpid(), 9)

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        get(falls_over.remote())
    labels = {"Name": "falls_over", "Type": "Raylet.UnexpectedTaskFailure.Total"}
    page = page_when(
        node, lambda page: page.sum("ray_node_manager_unexpected_worker_failure_total", **labels), "the failure shows"
    )
    assert page.sum("ray_node_manager_unexpected_worker_failure_total", **labels) == 1
    if OURS:
        # The stock raylet's figure grows with every report (its agent adds totals up).
        started = page.sum("ray_internal_num_processes_started")
        time.sleep(3 * REPORT_S)
        assert Page(node).sum("ray_internal_num_processes_started") - started <= 1


def test_shards_arenas_and_pages_are_told(node):
    get(work.remote())
    if not OURS:
        # The names must be ours alone: a dashboard that finds them may rely on what they mean.
        assert not [name for name in Page(node).values if name.startswith("ray_raylet_uring_")]
        return
    page = page_when(node, lambda page: page.sum("ray_raylet_uring_shard_workers") >= 1, "our own figures")
    size = page.sum("ray_raylet_uring_arena_bytes", Kind="size")
    assert size >= 300 * MIB and size % (2 * MIB) == 0
    assert all(labels["Pages"] for labels, _ in page.values["ray_raylet_uring_arena_bytes"])
    queues = {labels["Queue"] for labels, _ in page.values["ray_raylet_uring_shard_queue_depth"]}
    assert {"leases_wait_for_resources", "creates", "connections"} <= queues
    assert page.sum("ray_raylet_uring_shard_queue_depth", Queue="connections") >= 2


def test_the_dashboard_shows_what_a_node_exports(node):
    """Every metric that the Grafana dashboard asks for is there, with the labels that it chooses by."""
    dashboard = json.loads((harness.REPOSITORY / "dashboards" / "raylet-uring.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    asked += [variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable]
    names = {name for text in asked for name in re.findall(r"\bray_\w+", text)}
    assert len(asked) > 15 and len(names) > 10, names
    get([work.remote() for _ in range(3)])
    kept = ray.put(np.zeros(MIB, dtype=np.uint8))
    ours = {name for name in names if name.startswith("ray_raylet_uring_")}
    wanted = names if OURS else names - ours
    page = page_when(node, lambda page: not wanted - page.values.keys(), f"all of {sorted(wanted)}")
    assert OURS or not ours & page.values.keys()
    for text in asked:
        for name, selector in re.findall(r"\b(ray_\w+)\{([^}]*)\}", text):
            labels = set(re.findall(r"(\w+)=~?\"", selector))
            assert name not in wanted or all(labels <= have.keys() for have, _ in page.values[name]), (name, labels)
            by = set(re.findall(r"\w+", ",".join(re.findall(r"by \(([^)]*)\)", text))))
            assert name not in wanted or by <= page.values[name][0][0].keys(), (name, by)
    del kept


def test_the_command_line_prints_what_the_agent_is_told(node):
    """`status --metrics`: the format as Prometheus reads it, and the same names and values as by the agent."""
    if not OURS:
        return
    page = page_when(node, lambda page: "ray_raylet_uring_transfer_part_bytes" in page.values, "our own figures")
    arguments = [str(harness.our_binary()), "status", "--metrics"]
    text = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True).stdout
    families = {family.name: family for family in text_string_to_metric_families(text)}
    mine = str(node.raylet.pid)
    for name in ("arena_bytes", "arena_pages", "transfer_bytes", "transfer_part_bytes", "pulls", "operations_total"):
        family = families["raylet_uring_" + name]
        labels = [set(s.labels) - {"NodeId", "Pid"} for s in family.samples if s.labels["Pid"] == mine]
        told = page.values["ray_raylet_uring_" + name]
        assert labels and all(by <= have.keys() for by, (have, _) in zip(labels, told)), (name, labels, told)
    arena = [s for s in families["raylet_uring_arena_bytes"].samples if (s.labels["Pid"], s.labels["Kind"]) == (mine, "size")]
    assert sum(s.value for s in arena) == page.sum("ray_raylet_uring_arena_bytes", Kind="size")


def test_latencies_and_rings_are_counted_once(node):
    """Histograms grow by what happened, and not by each report."""
    if not OURS:
        return
    count = "ray_raylet_uring_operation_latency_us_count"
    labels = {"Operation": "plasma.create"}
    before = page_when(node, lambda page: count in page.values, "latencies").sum(count, **labels)
    kept = [ray.put(np.zeros(MIB // 4, dtype=np.uint8)) for _ in range(5)]
    page_when(node, lambda page: page.sum(count, **labels) >= before + 5, "the puts show")

    def at_rest():
        told = Page(node).sum(count, **labels)
        time.sleep(3 * REPORT_S)
        return Page(node).sum(count, **labels) == told

    wait_until(at_rest, "reports without a put add nothing")
    page_when(node, lambda page: page.sum("ray_raylet_uring_ring_completions_total") > 0, "completions")
    del kept


def test_state_is_dumped_beside_the_logs(node):
    dump = node.logs / "debug_state.txt"
    wait_until(dump.exists, "a dump of the state")
    if not OURS:
        return
    wait_until(lambda: f"Driver pid {os.getpid()}" in dump.read_text(), "the dump names the driver")
    get(work.remote())
    text = dump.read_text()
    assert "shards in detail" in text and "arenas" in text and "object_store_memory" in text

    def quiet():
        written = dump.stat().st_mtime_ns
        time.sleep(3 * DUMP_S)
        return dump.stat().st_mtime_ns == written

    wait_until(quiet, "an idle node writes no dumps")
    kept = ray.put(np.zeros(3 * MIB, dtype=np.uint8))
    written = dump.stat().st_mtime_ns
    wait_until(lambda: dump.stat().st_mtime_ns > written, "a change is dumped")
    del kept
