"""Fixtures of the end-to-end suite. Each module starts one node; see harness.local_node."""

import gc
import os

import pytest

import harness

# Workers unpickle by reference what the test modules define at their top level.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [os.path.dirname(os.path.abspath(__file__)), os.environ.get("PYTHONPATH")])
)


@pytest.fixture(scope="module")
def node(request):
    """The module's node. A module says what it needs in NODE (keyword arguments of ray.init, or a function that gives them
    when the node starts) and ENVIRONMENT."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in getattr(request.module, "ENVIRONMENT", {}).items():
            patch.setenv(name, value)
        needs = getattr(request.module, "NODE", {})
        with harness.local_node(**(needs() if callable(needs) else needs)) as running:
            yield running


@pytest.fixture(autouse=True)
def conserved(request):
    """After each test of a module with a node, everything that was leased must be free again."""
    yield
    if "node" not in request.fixturenames or request.node.stash.get(FAILED, False):
        return
    import ray

    gc.collect()

    def missing():
        total, free = ray.cluster_resources(), ray.available_resources()
        return {name: (free.get(name, 0), amount) for name, amount in total.items()
                if not name.startswith("object_store") and abs(free.get(name, 0) - amount) > 1e-6}

    harness.wait_until(lambda: not missing(), "every resource free again after the test", every_s=0.1)


FAILED = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Remembers a failure, so that the node's logs are kept (harness.keep_logs)."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
        harness.failures.append(item.nodeid)
    return report


def pytest_report_header():
    """Says which raylet this run is about."""
    return f"raylet under test: {harness.UNDER_TEST} ({harness.installed_raylet()})"
