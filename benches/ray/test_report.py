"""What the table says about samples, and that every row has a measurement."""

from __future__ import annotations

import json

import pytest

import report
from node import Node
from moving import Nodes, PULLS
from rows import CHOICES, MEASUREMENTS, PROGRAMS, ROWS
from spilling import SpillingNode


def by_name(samples):
    return {entry["name"]: entry for entry in report.summarise(samples, [])}


def sides(stock, ours):
    return {"stock": dict(enumerate(stock)), "ours": dict(enumerate(ours))}


def test_every_row_has_a_measurement():
    names = {"leases", "shapes"} | {name.removeprefix("measure_") for name in vars(Node) if name.startswith("measure_")}
    for row in ROWS:
        if row.kind in PROGRAMS:
            assert row.measurement in PROGRAMS[row.kind], row
        else:
            assert row.choice in names, row
            assert row.measurement in [*MEASUREMENTS, "first_touch"], row
        assert row.choice.replace("_", "-") in CHOICES, row
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_what_moves_and_spills_is_measured_by_programs_of_its_own():
    pulls = {f"pull:{size}" for size in [*PULLS, "batch", "stream"]}
    assert set(PROGRAMS["wired"]) == pulls | {"broadcast"} and hasattr(Nodes, "measure_broadcast")
    assert set(PROGRAMS["moving"]) == set(PROGRAMS["wired"]) - {"pull:stream"}
    assert PROGRAMS["spilling"] == ["spill"] and hasattr(SpillingNode, "measure_spill")


def test_less_cpu_is_better_and_a_target_is_a_ratio_of_medians():
    row = by_name({"put_cpu": sides([400, 500, 600], [100, 50, 10])})["put_cpu"]
    assert (row["stock"]["median"], row["ours"]["median"]) == (500, 50)
    assert row["improvement"] == 10 and row["reached"] is True
    assert row["improvements"] == [4, 10, 60]
    assert by_name({"put_cpu": sides([500], [84])})["put_cpu"]["reached"] is False


def test_more_per_second_is_better():
    assert by_name({"put_rate": sides([1000], [1400])})["put_rate"]["reached"] is True
    assert by_name({"put_rate": sides([1400], [1000])})["put_rate"]["improvement"] == pytest.approx(0.714, abs=1e-3)


def test_a_limit_holds_for_ours_alone():
    assert by_name({"lease64_starvation": sides([2], [9.9])})["lease64_starvation"]["reached"] is True
    assert by_name({"lease64_starvation": sides([200], [10])})["lease64_starvation"]["reached"] is False


def test_a_share_of_the_machines_rate_is_to_be_reached_whatever_stock_does():
    row = by_name({"pull1G_share": sides([0.9], [0.8, 0.7, 0.85])})["pull1G_share"]
    assert row["reached"] is True and "| >= 0.8 | yes |" in report.markdown([row])
    assert by_name({"pull1G_share": sides([0.1], [0.79])})["pull1G_share"]["reached"] is False
    assert by_name({"io_workers": sides([7], [0])})["io_workers"]["reached"] is True
    assert by_name({"io_workers": sides([7], [1])})["io_workers"]["reached"] is False


def test_many_shapes_are_compared_with_few():
    samples = {"shapes10_rate": sides([800, 800], [4000, 5000]), "shapes500_rate": sides([160, 160], [3600, 3500])}
    flat = by_name(samples)["shapes_flat"]
    assert flat["stock"]["median"] == pytest.approx(0.2)
    assert flat["ours"]["samples"] == [pytest.approx(0.9), pytest.approx(0.7)]
    assert flat["reached"] is True
    samples["shapes500_rate"] = sides([160, 160], [3100, 3500])
    assert by_name(samples)["shapes_flat"]["reached"] is False


def test_a_turn_that_failed_leaves_a_hole_and_no_verdict_is_made_up():
    samples = {"init": {"stock": {0: 4.0, 1: 8.0, 2: 4.0}, "ours": {0: 2.0, 2: 1.0}}, "idle_cpu": {"stock": {0: 1.0}}}
    failures = [{"alternation": 1, "side": "ours", "row": "init", "why": "it broke"}]
    rows = {entry["name"]: entry for entry in report.summarise(samples, failures)}
    assert rows["init"]["improvements"] == [2.0, 4.0]
    assert rows["init"]["failures"] == failures
    assert rows["idle_cpu"]["reached"] is None and rows["idle_cpu"]["ours"] is None
    text = report.table(list(rows.values()))
    assert "not measured" in text and "2.67x" in text
    json.dumps(list(rows.values()))


def test_the_plot_is_drawn(tmp_path):
    rows = report.summarise({"put_cpu": sides([400, 500], [50, 60]), "init": sides([4], [5])}, [])
    report.plot(rows, "a title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
