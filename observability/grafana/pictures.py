#!/usr/bin/env python3
"""Draws each dashboard from its JSON and a Prometheus's answers, where there is no Grafana to look at.

Not Grafana's own rendering: the panels, their queries, units and places are those of the JSON, the numbers are Prometheus's.
Needs matplotlib. `cargo dev pictures` installs it, runs a platform under load and calls this.
Usage: pictures.py PROMETHEUS_URL FOLDER [MINUTES [WHAT_RAN]]
"""

import json
import math
import sys
import time
import urllib.parse
import urllib.request
from datetime import datetime
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.dates import DateFormatter

ROW_INCHES, WIDTH_INCHES, COLUMNS = 0.42, 18.0, 24
SERIES_MAX = 8
DASHBOARDS = Path(__file__).parent / "dashboards"


def ask(url, path, **parameters):
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
        return json.load(answer)["data"]["result"]


def expression(target):
    """What Grafana asks with every service and instance chosen."""
    text = target["expr"]
    for name, value in (("$__rate_interval", "1m"), ("$namespace", ".*"), ("$job", ".*"), ("$instance", ".*")):
        text = text.replace(name, value)
    return text


def legend(target, metric):
    text = target.get("legendFormat") or ""
    for label in set(part.split("}}")[0] for part in text.split("{{")[1:]):
        text = text.replace("{{%s}}" % label, metric.get(label, ""))
    return " ".join(text.split())[:60]


def shown(value, unit):
    if math.isnan(value):
        return "no data"
    if unit == "percentunit":
        return f"{value * 100:.5g} %"
    if unit == "s":
        for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value:.3g} s" if abs(value) >= 1 else f"{value * 1000:.3g} ms"
    if unit == "bytes":
        for size, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
    if unit == "bool_yes_no":
        return "yes" if value else "no"
    suffix = {"reqps": " req/s", "eps": " events/s", "cps": "/s", "ops": " ops/s", "bytes": " B"}.get(unit, "")
    return f"{value:.4g}{suffix}"


def draw_lines(axes, panel, url, start, end):
    unit = panel["fieldConfig"]["defaults"]["unit"]
    lines = []
    for target in panel["targets"]:
        step = max(2, int((end - start) / 300))
        for series in ask(url, "query_range", query=expression(target), start=start, end=end, step=step):
            points = [(datetime.fromtimestamp(float(t)), float(v)) for t, v in series["values"] if v != "NaN"]
            if points:
                lines.append((legend(target, series["metric"]), points))
    lines.sort(key=lambda line: -line[1][-1][1])
    for name, points in lines[:SERIES_MAX]:
        axes.plot(*zip(*points), linewidth=1, label=f"{name}  {shown(points[-1][1], unit)}")
    top = axes.get_ylim()[1]
    for step in panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", []):
        if step["value"] is not None and step["value"] <= 2 * top:
            axes.axhline(step["value"], color="red", linewidth=0.8, linestyle="--")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: shown(value, unit))
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M"))
    axes.tick_params(labelsize=6)
    axes.grid(alpha=0.2)
    if lines:
        axes.legend(fontsize=5.5, loc="upper left", framealpha=0.6, borderpad=0.3)
        if len(lines) > SERIES_MAX:
            axes.annotate(f"and {len(lines) - SERIES_MAX} more", (0.99, 0.93), xycoords="axes fraction", ha="right", fontsize=6)


def draw_number(axes, panel, url):
    unit, steps = (panel["fieldConfig"]["defaults"][key] for key in ("unit", "thresholds"))
    axes.axis("off")
    found = [(legend(t, s["metric"]), float(s["value"][1])) for t in panel["targets"] for s in ask(url, "query", query=expression(t))]
    for at, (name, value) in enumerate(found[:4]):
        colour = "green"
        for step in steps["steps"]:
            if step["value"] is None or value >= step["value"]:
                colour = step["color"]
        height = 1 - (at + 0.5) / min(len(found), 4)
        axes.text(0.5, height, shown(value, unit), fontsize=15, color=colour, ha="center", va="bottom")
        axes.text(0.5, height, name, fontsize=7, ha="center", va="top")


def draw_alerts(axes, url):
    axes.axis("off")
    alerts = ask(url, "query", query='ALERTS{alertname=~"Fechatter.*"}')
    lines = [f'{a["metric"]["alertstate"]}: {a["metric"]["alertname"]} ({a["metric"]["severity"]})' for a in alerts]
    axes.text(0.02, 0.95, "\n".join(lines) or "nothing fires", fontsize=9, va="top")


def draw(path, url, folder, minutes, what_ran):
    dashboard = json.loads(path.read_text())
    panels = dashboard["panels"]
    rows = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels) + 1
    figure = plt.figure(figsize=(WIDTH_INCHES, rows * ROW_INCHES))
    figure.text(0.01, 1 - 0.6 / rows, dashboard["title"], fontsize=14, weight="bold", va="center")
    figure.text(0.99, 1 - 0.6 / rows, what_ran, fontsize=8, ha="right", va="center", color="#444444")
    end = time.time()
    for panel in panels:
        at = panel["gridPos"]
        top = 1 - (at["y"] + 1) / rows
        left = at["x"] / COLUMNS
        if panel["type"] == "row":
            figure.text(0.01, top - 0.6 / rows, panel["title"], fontsize=11, weight="bold", va="center", color="#444444")
            continue
        axes = figure.add_axes(
            (left + 0.035, top - (at["h"] - 0.9) / rows, at["w"] / COLUMNS - 0.045, (at["h"] - 1.9) / rows)
        )
        axes.set_title(panel["title"], fontsize=8, loc="left")
        if panel["type"] == "timeseries":
            draw_lines(axes, panel, url, end - minutes * 60, end)
        elif panel["type"] == "stat":
            draw_number(axes, panel, url)
        elif panel["type"] == "alertlist":
            draw_alerts(axes, url)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{path.stem}.png", dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    for file in sorted(DASHBOARDS.glob("*.json")):
        minutes, what_ran = (*sys.argv[3:5], *("15", "")[len(sys.argv[3:5]):])
        draw(file, sys.argv[1].rstrip("/"), Path(sys.argv[2]), int(minutes), what_ran)
        print(f"{file.stem}.png")
