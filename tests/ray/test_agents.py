"""The two agents that a raylet starts: both run, know their ports, and the raylet shares their fate."""

import json

import psutil
import pytest

import harness
from harness import background_program, short_directory
from test_lifecycle import WAITING_DRIVER


@pytest.mark.parametrize("kind", ["DashboardAgent", "RuntimeEnvAgent"])
def test_raylet_shares_the_fate_of_its_agent(kind):
    with short_directory() as directory, background_program(WAITING_DRIVER, directory) as child:
        report = json.loads(child.stdout.readline())
        raylet = harness.raylet_of_session(report["session"])
        harness.assert_raylet_under_test(raylet)
        agents = harness.both_agents_of(raylet)
        everything = harness.descendants(psutil.Process(child.pid))
        agents[kind].kill()
        harness.assert_all_gone([raylet], f"the raylet ends when its {kind} is killed", timeout_s=60)
        child.kill()
        harness.assert_all_gone(everything, "the rest ends with the driver", timeout_s=80)
