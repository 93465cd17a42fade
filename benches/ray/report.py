"""From samples to a table, a JSON file and a plot."""

from __future__ import annotations

import statistics
from pathlib import Path

from rows import FLAT_SHAPES, ROWS, Row


def _summary(samples: dict[int, float]) -> dict | None:
    """`samples` by alternation: a turn that failed has none."""
    if not samples:
        return None
    values = list(samples.values())
    spread = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {**spread, "samples": values, "alternations": list(samples)}


def _pairs(one: dict | None, other: dict | None) -> dict[int, tuple[float, float]]:
    """The samples of the alternations that both have."""
    if one is None or other is None:
        return {}
    left, right = (dict(zip(side["alternations"], side["samples"])) for side in (one, other))
    return {alternation: (left[alternation], right[alternation]) for alternation in left if alternation in right}


def _improvement(row: Row, stock: float, ours: float) -> float | None:
    """How many times better ours is; None where that is no number."""
    better, worse = (stock, ours) if row.lower_is_better else (ours, stock)
    return better / worse if worse > 0 else None


Samples = dict[str, dict[str, dict[int, float]]]


def summarise(samples: Samples, failures: list[dict]) -> list[dict]:
    """One object per row that was measured; `samples` is row name -> side -> alternation -> figure."""
    rows = []
    for row in ROWS:
        if row.name not in samples:
            continue
        stock, ours = (_summary(samples[row.name].get(side, {})) for side in ("stock", "ours"))
        entry = {
            "name": row.name,
            "text": row.text,
            "unit": row.unit,
            "better": "lower" if row.lower_is_better else "higher",
            "stock": stock,
            "ours": ours,
            "improvement": None,
            "improvements": [],
            "target": row.target,
            "limit": row.limit,
            "least": row.least,
            "reached": None,
        }
        if stock and ours:
            entry["improvement"] = _improvement(row, stock["median"], ours["median"])
            each = (_improvement(row, *pair) for pair in _pairs(stock, ours).values())
            entry["improvements"] = [i for i in each if i is not None]
        entry["reached"] = _reached(row, entry)
        rows.append(entry)
    by_name = {entry["name"]: entry for entry in rows}
    flat = _flat_shapes(by_name)
    if flat:
        rows.insert(rows.index(by_name[FLAT_SHAPES[0]]) + 1, flat)
    for entry in rows:
        entry["failures"] = [f for f in failures if f["row"] == entry["name"]]
    return rows


def _reached(row: Row, entry: dict) -> bool | None:
    if row.limit is not None:
        return entry["ours"]["median"] < row.limit if entry["ours"] else None
    if row.least is not None:
        return entry["ours"]["median"] >= row.least if entry["ours"] else None
    if row.target is not None:
        return entry["improvement"] >= row.target if entry["improvement"] is not None else None
    return None


def _flat_shapes(by_name: dict[str, dict]) -> dict | None:
    """The share of its rate that a side keeps from few shapes to many."""
    many, few, least = FLAT_SHAPES
    if many not in by_name or few not in by_name:
        return None
    sides = {}
    for side in ("stock", "ours"):
        pairs = _pairs(by_name[many][side], by_name[few][side])
        sides[side] = _summary({at: top / bottom for at, (top, bottom) in pairs.items() if bottom > 0})
    ours = sides["ours"]
    return {
        "name": "shapes_flat",
        "text": "500 shapes queued: leases/s beside 10 shapes",
        "unit": "",
        "better": "higher",
        **sides,
        "improvement": None,
        "improvements": [],
        "target": None,
        "limit": None,
        "least": least,
        "reached": ours["median"] >= least if ours else None,
    }


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _cell(summary: dict | None, unit: str) -> str:
    if summary is None:
        return "not measured"
    spread = f" ({_number(summary['min'])}..{_number(summary['max'])})" if len(summary["samples"]) > 1 else ""
    unit = f" {unit}" if unit and not unit.startswith("/") else unit
    return f"{_number(summary['median'])}{unit}{spread}"


def _goal(entry: dict) -> str:
    if entry["limit"] is not None:
        return f"< {entry['limit']:g}"
    if entry["least"] is not None:
        return f">= {entry['least']:g}"
    return f"{entry['target']:g}x" if entry["target"] is not None else ""


def _verdict(entry: dict) -> str:
    if entry["target"] is None and entry["limit"] is None and entry["least"] is None:
        return ""
    return {True: "yes", False: "NO", None: "not measured"}[entry["reached"]]


HEADINGS = ("row", "stock, median (min..max)", "ours, median (min..max)", "better by", "target", "reached")


def _cells(rows: list[dict]) -> list[tuple[str, ...]]:
    return [
        (
            entry["text"],
            _cell(entry["stock"], entry["unit"]),
            _cell(entry["ours"], entry["unit"]),
            f"{entry['improvement']:.2f}x" if entry["improvement"] is not None else "",
            _goal(entry),
            _verdict(entry),
        )
        for entry in rows
    ]


def table(rows: list[dict]) -> str:
    """For a terminal."""
    lines = [HEADINGS, *_cells(rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def markdown(rows: list[dict]) -> str:
    """For a document."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *_cells(rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def plot(rows: list[dict], title: str, path: Path) -> None:
    """Improvement over stock of each row, each alternation a dot, with the targets."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [entry for entry in rows if entry["improvement"] is not None][::-1]
    if not shown:
        return
    colours = {True: "tab:green", False: "tab:red", None: "tab:grey"}
    figure, axes = pyplot.subplots(figsize=(10, 1.5 + 0.3 * len(shown)))
    for y, entry in enumerate(shown):
        axes.barh(y, entry["improvement"] - 1, left=1, color=colours[entry["reached"]], alpha=0.6, height=0.6)
        axes.plot(entry["improvements"], [y] * len(entry["improvements"]), ".", color="black", markersize=3)
        if entry["target"] is not None:
            axes.plot([entry["target"]] * 2, [y - 0.4, y + 0.4], color="black", linewidth=2)
    axes.set_xscale("log")
    axes.set_xticks([0.25, 0.5, 1, 2, 4, 8, 16, 32], ["1/4", "1/2", "1", "2", "4", "8", "16", "32"])
    axes.minorticks_off()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [entry["text"] for entry in shown], fontsize=8)
    axes.set_xlabel("times better than stock; bar: medians, dots: alternations, mark: target (green reached, red not)")
    axes.set_title(title, fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
