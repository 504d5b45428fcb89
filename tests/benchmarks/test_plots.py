"""The plots of docs/performance.md are those of the kept results, and the document says what these say."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from benchmarks.growth import PARTS
from benchmarks.plot import Plot
from benchmarks.plot_data import PART_NAMES, RESULTS, Result, read_results
from benchmarks.plots import BLOCKS, DOCUMENT, IMAGES, update_document
from benchmarks.report import describe_machine

DRAW = "run: uv run --group dev python -m benchmarks.plots"


def published() -> Iterator[Plot]:
    for result in read_results():
        yield from result.plots()


@pytest.mark.parametrize("plot", [*published()], ids=lambda plot: plot.name)
def test_plot_was_drawn_from_the_kept_results(plot: Plot) -> None:
    assert plot.digest() in (IMAGES / f"{plot.name}.svg").read_text("utf-8"), DRAW


@pytest.mark.parametrize("plot", [*published()], ids=lambda plot: plot.name)
def test_every_series_has_a_value_at_every_point(plot: Plot) -> None:
    assert plot.series
    for series in plot.series:
        assert len(series.values) == len(plot.labels)
        assert len(series.shown or series.values) == len(plot.labels)
        assert all(value >= 0 for value in series.values)
    assert len(plot.places) == (len(plot.labels) if plot.kind == "lines" else 0)


def test_no_plot_is_left_of_results_that_went() -> None:
    assert {file.name for file in IMAGES.iterdir()} == {f"{plot.name}.svg" for plot in published()}, DRAW


def test_document_says_what_the_results_say() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert update_document(text, read_results()) == text, DRAW
    for block in BLOCKS:
        assert len(re.findall(f"<!-- plots, {block}: (?:begin|end) -->", text)) == 2


def test_every_part_of_a_request_has_a_name() -> None:
    assert tuple(PART_NAMES) == PARTS


def test_results_name_their_machine_and_commit() -> None:
    files = sorted(RESULTS.glob("*.json"))
    assert files
    for file in files:
        machine = json.loads(file.read_text("utf-8"))["machine"]
        assert describe_machine().keys() - machine.keys() == set(), file.name
        assert machine["commit"], file.name


def gpu_pass(*, torch: bool) -> dict[str, Any]:
    rows = [
        {"bits": 16, "batch": 1, "side": 512, "fused_queued_ms": 20.0, "stock_ms": 30.0},
        {"bits": 16, "batch": 1, "side": 1024, "fused_queued_ms": 50.0, "stock_ms": 75.0},
        {"bits": 8, "batch": 1, "side": 512, "fused_queued_ms": 25.0},
    ]
    peer = {f"{way}_{side}_ms": 40.0 for way in ("eager", "compiled") for side in (512, 1024)}
    return {"benchmark": "gpu_pass", "machine": {}, "steps": rows, "torch": peer if torch else None}


def test_steps_of_peers_are_compared_where_they_are_installed() -> None:
    (plot,) = Result(stem="card", found=gpu_pass(torch=True)).plots()
    assert (plot.name, plot.unit, plot.labels) == ("card-step", "milliseconds", ("512²", "1024²"))
    assert [series.values for series in plot.series] == [(20.0, 50.0), (30.0, 75.0), (40.0, 40.0), (40.0, 40.0)]
    assert "mflux, compiled takes 1.50 times as long as this service" in plot.caption
    (alone,) = Result(stem="card", found=gpu_pass(torch=False)).plots()
    assert len(alone.series) == 2


def test_digest_changes_with_every_value() -> None:
    (plot,) = Result(stem="card", found=gpu_pass(torch=False)).plots()
    first, second = plot.series
    changed = attrs.evolve(plot, series=(first, attrs.evolve(second, values=(30.0, 75.1))))
    assert changed.digest() != plot.digest()


def test_result_of_an_unknown_benchmark_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no plot of 'startup'"):
        list(Result(stem="card", found={"benchmark": "startup"}).plots())


@pytest.mark.slow
def test_same_values_make_the_same_file(tmp_path: Path) -> None:
    from benchmarks.plots import draw

    (plot,) = Result(stem="card", found=gpu_pass(torch=True)).plots()
    draw(plot, tmp_path / "one.svg")
    draw(plot, tmp_path / "other.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()
    assert plot.digest() in (tmp_path / "one.svg").read_text("utf-8")
