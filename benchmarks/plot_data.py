"""What the plots in docs/performance.md show, out of the kept results: series, the sentence to each, and a table.

Nothing is drawn here; :mod:`benchmarks.plots` does that.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import attrs

from benchmarks.peers import SERVICE
from benchmarks.plot import Plot, Series
from benchmarks.report import ROOT, machine_line

RESULTS = ROOT / "benchmarks" / "results"
Block = Literal["cpu", "gpu"]
"""A place in the document."""
REQUEST, ENGINE = "whole request", "engine alone"
PART_NAMES = {
    "encode": "prompt",
    "denoise": "denoising",
    "decode": "decoding",
    "save": "PNG file",
    "answer": "HTTP and the rest",
}


@attrs.frozen(kw_only=True)
class Result:
    """One file of results."""

    stem: str
    found: dict[str, Any]

    @property
    def block(self) -> Block:
        """The place of its plots."""
        return "gpu" if self.found["benchmark"] == "gpu_pass" or self.found["model"] == "klein" else "cpu"

    def source(self) -> str:
        """Say what it comes from."""
        options = " --klein FOLDER" if self.found.get("model") == "klein" else ""
        options += " --quick" if self.found.get("quick") else ""
        return f"`python -m benchmarks.{self.found['benchmark']}{options}` ({machine_line(self.found['machine'])})"

    def plots(self) -> Iterator[Plot]:
        """Return its plots, each with the name of its file.

        Raises:
            ValueError: this benchmark has no plots.
        """
        benchmark = self.found["benchmark"]
        if benchmark not in _PLOTS:
            raise ValueError(f"{self.stem}.json: there is no plot of '{benchmark}'")
        for make in _PLOTS[benchmark]:
            plot = make(self.found)
            yield attrs.evolve(plot, name=f"{self.stem}-{plot.name}")


def read_results(folder: Path = RESULTS) -> list[Result]:
    """Return the results that are kept, in the order of their names."""
    files = sorted(folder.glob("*.json"), key=lambda file: file.stem)
    return [Result(stem=file.stem, found=json.loads(file.read_text("utf-8"))) for file in files]


def _size(found: dict[str, Any]) -> Plot:
    rows = found["size"]
    first, last = rows[0], rows[-1]
    pixels, seconds = (last["side"] / first["side"]) ** 2, last["seconds"] / first["seconds"]
    return _seconds_plot(
        name="size",
        title="An image's time, by its size",
        caption=f"{_squared(last)} has {pixels:.1f} times the pixels of {_squared(first)}, and takes {seconds:.1f} "
        f"times as long ({found['steps_each']} steps).",
        across="size",
        labels=tuple(map(_squared, rows)),
        axis="size, each at its number of pixels",
        places=tuple(row["side"] ** 2 / 1e6 for row in rows),
        series={REQUEST: [row["seconds"] for row in rows], ENGINE: [row["engine_seconds"] for row in rows]},
    )


def _parts(found: dict[str, Any]) -> Plot:
    rows = found["size"]
    shares = {
        name: [max(0.0, row["parts"][part]) / row["seconds"] for row in rows] for part, name in PART_NAMES.items()
    }
    service = [shares[PART_NAMES["save"]][at] + shares[PART_NAMES["answer"]][at] for at in (0, -1)]
    series = tuple(
        Series(
            name=name,
            values=tuple(100 * value for value in shares[name]),
            shown=tuple(map(_share, shares[name])),
        )
        for name in PART_NAMES.values()
    )
    return Plot(
        name="parts",
        kind="shares",
        title="Where the time of one request goes",
        caption=f"All but the engine (the PNG file, HTTP and the rest) is {_share(service[0])} of a request at "
        f"{_squared(rows[0])} and {_share(service[1])} at {_squared(rows[-1])}; the prompts were new.",
        across="size",
        unit="share of the time",
        labels=tuple(f"{_squared(row)}, {_duration(row['seconds'])}" for row in rows),
        series=series,
    )


def _steps(found: dict[str, Any]) -> Plot:
    rows = found["steps"]
    first, last = rows[0], rows[-1]
    each = (last["seconds"] - first["seconds"]) / (last["steps"] - first["steps"])
    return _seconds_plot(
        name="steps",
        title="An image's time, by its steps",
        caption=f"A further step costs {_duration(each)} at {found['side']}²; {_duration(first['seconds'] - each)} are "
        "needed with any number of steps, for decoding, the file and HTTP.",
        across="steps",
        labels=tuple(str(row["steps"]) for row in rows),
        places=tuple(row["steps"] for row in rows),
        series={REQUEST: [row["seconds"] for row in rows], ENGINE: [row["engine_seconds"] for row in rows]},
    )


def _images(found: dict[str, Any]) -> Plot:
    rows = found["images"]
    each = [row["seconds"] / row["images"] for row in rows]
    return _seconds_plot(
        name="images",
        title="The time of each image, by how many one request asks for",
        caption=f"Each of {rows[-1]['images']} images in one request takes {_duration(each[-1])}, "
        f"{each[-1] / each[0]:.2f} of what one alone takes ({found['side']}², {found['steps_each']} steps).",
        across="images in one request",
        labels=tuple(str(row["images"]) for row in rows),
        places=tuple(row["images"] for row in rows),
        series={
            "each image, whole request": each,
            "each image, engine alone": [row["engine_seconds"] / row["images"] for row in rows],
        },
    )


def _callers(found: dict[str, Any]) -> Plot:
    lanes = found["callers"]
    rows = lanes[0]["rows"]
    gains = [
        f"{lane['rows'][-1]['images_a_minute'] / rows[0]['images_a_minute']:.2f} times (batch window of "
        f"{lane['batch_window_ms']} ms)"
        for lane in lanes
    ]
    return Plot(
        name="callers",
        kind="lines",
        title="Images a minute, by callers at once",
        caption=f"{rows[-1]['callers']} callers at once get {' and '.join(gains)} the images a minute of "
        f"one, {rows[0]['images_a_minute']:.0f} (`scheduler.batch_window_ms`; {found['side']}², {found['steps_each']} "
        "steps).",
        across="callers at once",
        unit="images a minute",
        labels=tuple(str(row["callers"]) for row in rows),
        places=tuple(row["callers"] for row in rows),
        series=tuple(
            Series(
                name=f"batch window of {lane['batch_window_ms']} ms",
                values=tuple(row["images_a_minute"] for row in lane["rows"]),
                shown=tuple(f"{row['images_a_minute']:.0f}" for row in lane["rows"]),
            )
            for lane in lanes
        ),
    )


def _queue(found: dict[str, Any]) -> Plot:
    rows = found["queue"]
    last = rows[-1]
    return _seconds_plot(
        name="queue",
        title="The time of each job, by how many were submitted together",
        caption=f"Of {last['queued']} jobs submitted together each takes {_duration(last['seconds'])}, "
        f"{_duration(last['engine_seconds'])} of it the engine's ({found['side']}², {found['steps_each']} steps).",
        across="jobs submitted together",
        labels=tuple(str(row["queued"]) for row in rows),
        places=tuple(row["queued"] for row in rows),
        series={
            "each job, from the first call to the last image": [row["seconds"] for row in rows],
            "each job, engine alone": [row["engine_seconds"] for row in rows],
        },
    )


def _peers(found: dict[str, Any]) -> Plot:
    ways = {name: row for name, row in found["ways"].items() if row is not None}
    sides = [str(side) for side in found["sides"]]
    own = ways[SERVICE][sides[0]]["seconds"]
    ratios = {name: row[sides[0]]["seconds"] / own for name, row in ways.items() if name != SERVICE}
    return _seconds_plot(
        name="image",
        kind="bars",
        title="One image, by who generates it",
        caption=f"At {sides[0]}² {_times_as_long(ratios)}. All have the same weights and "
        f"{found['steps_each']} steps, and a new prompt for each image.",
        across="size",
        labels=tuple(f"{side}²" for side in sides),
        series={name: [row[side]["seconds"] for side in sides] for name, row in ways.items()},
    )


def _steps_of_peers(found: dict[str, Any]) -> Plot:
    rows = [row for row in found["steps"] if row["bits"] == 16 and row["batch"] == 1]
    series = {
        SERVICE.partition(",")[0]: [row["fused_queued_ms"] / 1000 for row in rows],
        "mflux, compiled": [row["stock_ms"] / 1000 for row in rows],
    }
    if found["torch"] is not None:
        for way in ("eager", "compiled"):
            series[f"diffusers, {way}"] = [found["torch"][f"{way}_{row['side']}_ms"] / 1000 for row in rows]
    (_, own), *others = [(name, values[-1]) for name, values in series.items()]
    ratios = {name: value / own for name, value in others}
    return _seconds_plot(
        name="step",
        kind="bars",
        title="One denoising step, by who computes it",
        caption=f"At {_squared(rows[-1])} {_times_as_long(ratios)}.",
        across="size",
        labels=tuple(map(_squared, rows)),
        series=series,
    )


def _seconds_plot(*, series: dict[str, list[float]], **plot: Any) -> Plot:
    """Return a plot of durations, in milliseconds where all are below a second."""
    most = max(max(values) for values in series.values())
    unit, factor = ("milliseconds", 1000) if most < 1 else ("seconds", 1)
    lines = (Series(name=key, values=tuple(round(factor * one, 3) for one in each)) for key, each in series.items())
    return Plot(unit=unit, series=tuple(lines), **plot)


def _times_as_long(ratios: dict[str, float]) -> str:
    (name, ratio), *others = ratios.items()
    rest = "".join(f", {other} {number:.2f} times" for other, number in others)
    return f"{name} takes {ratio:.2f} times as long as this service{rest}"


def _squared(row: dict[str, Any]) -> str:
    return f"{row['side']}²"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


_PLOTS: dict[str, tuple[Callable[[dict[str, Any]], Plot], ...]] = {
    "growth": (_parts, _size, _steps, _images, _callers, _queue),
    "peers": (_peers,),
    "gpu_pass": (_steps_of_peers,),
}
