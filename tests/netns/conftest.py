"""What the tests on several hosts share."""

import pytest

import harness


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Remembers a failure, so that the hosts' logs are kept (harness.keep_logs)."""
    report = yield
    if report.failed:
        harness.failures.append(item.nodeid)
    return report
