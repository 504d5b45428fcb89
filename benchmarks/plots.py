"""Draw the plots of docs/performance.md from the results in ``benchmarks/results``, and write its lines about them.

A file of results is what ``--json`` of ``growth``, ``peers`` or ``gpu_pass`` writes; its name begins the names of its
plots. Nothing is measured here, and it needs matplotlib, which only development has a use for.

Run: ``uv run --group dev python -m benchmarks.plots [--results FOLDER] [--images FOLDER]``; with another folder of
results the document stays as it is
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.plot import Plot
from benchmarks.plot_data import ENGINE, REQUEST, RESULTS, Block, Result, read_results
from benchmarks.report import ROOT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOCUMENT = ROOT / "docs" / "performance.md"
IMAGES = ROOT / "docs" / "images" / "performance"
BLOCKS: tuple[Block, ...] = ("cpu", "gpu")

# Okabe and Ito's colours, told apart by colour-blind readers too. One name has one colour in all plots.
_COLOURS = {
    REQUEST: "#0072B2",
    ENGINE: "#6B6B6B",
    "each image, whole request": "#0072B2",
    "each image, engine alone": "#6B6B6B",
    "each job, from the first call to the last image": "#0072B2",
    "each job, engine alone": "#6B6B6B",
    "batch window of 0 ms": "#0072B2",
    "prompt": "#CC79A7",
    "denoising": "#0072B2",
    "decoding": "#56B4E9",
    "PNG file": "#009E73",
    "HTTP and the rest": "#E69F00",
    "this service, over HTTP": "#0072B2",
    "this service": "#0072B2",
    "stock mflux": "#E69F00",
    "mflux, compiled": "#E69F00",
    "a model per request": "#D55E00",
    "diffusers, eager": "#009E73",
    "diffusers, compiled": "#56B4E9",
}
_OTHER_COLOUR = "#D55E00"
_INK, _GRID, _CARD = "#24292F", "#D8DEE4", "#FFFFFF"
"""A plot is dark on a white card of its own, so that it is legible on a dark page, too."""
_MARKERS = "osD^v"
_NARROW = {"fontsize": 8.5, "columnspacing": 1.2, "handlelength": 1.0, "handletextpad": 0.5}


def draw(plot: Plot, file: Path) -> None:
    """Draw a plot as SVG, or as another format by the file's name."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # The same values make the same file, whose texts are texts: for screen readers, and a third of the bytes.
    fixed: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": plot.name,
        "font.size": 9,
        "axes.edgecolor": _GRID,
        "axes.labelcolor": _INK,
    }
    with mpl.rc_context(fixed | {"text.color": _INK, "xtick.color": _INK, "ytick.color": _INK}):
        height = 3.3 if plot.kind == "lines" else 1.5 + 0.24 * len(plot.labels) * _bars(plot)
        figure = Figure(figsize=(6.6, height), facecolor=_CARD, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
        axes = figure.add_subplot()
        axes.set_title(
            plot.title, loc="left", fontsize=10.5, fontweight="bold", pad=26 if plot.kind == "shares" else 10
        )
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        match plot.kind:
            case "lines":
                _draw_lines(axes, plot)
            case "shares":
                _draw_shares(axes, plot)
            case "bars":
                _draw_bars(axes, plot)
        metadata = {"Date": None, "Description": plot.digest()} if file.suffix == ".svg" else None
        figure.savefig(file, facecolor=_CARD, metadata=metadata, dpi=110)


def _bars(plot: Plot) -> int:
    """Return how many bars stand below each other at one point."""
    return len(plot.series) + 1 if plot.kind == "bars" else 2


def _draw_lines(axes: "Axes", plot: Plot) -> None:
    for marker, series in zip(_MARKERS, plot.series, strict=False):
        colour = _COLOURS.get(series.name, _OTHER_COLOUR)
        style = "--" if ENGINE in series.name else "-"
        axes.plot(plot.places, series.values, style, marker=marker, color=colour, label=series.name, markersize=5)
    # What is read is written beside its point; the engine's share is there to be seen, and is in the table.
    written = [row for row in plot.table().rows if ENGINE not in str(row[0])]
    values = {series.name: series.values for series in plot.series}
    highest = [max(column) for column in zip(*(values[str(row[0])] for row in written), strict=True)]
    for name, *texts in written:
        for place, value, top, text in zip(plot.places, values[str(name)], highest, texts, strict=True):
            # The higher line of a place has its number above, and the others below.
            offset = (0, 7 if value == top else -14)
            axes.annotate(str(text), (place, value), offset, textcoords="offset points", ha="center", fontsize=8)
    axes.set_ylim(0, 1.18 * max(max(series.values) for series in plot.series))
    axes.set_xticks(plot.places, plot.labels)
    axes.set_xlabel(plot.axis or plot.across)
    axes.set_ylabel(plot.unit)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    if len(plot.series) > 1:
        first, *_, last = plot.series[0].values
        axes.legend(frameon=False, loc="upper left" if last > 2 * first else "lower left", fontsize=8.5)


def _draw_shares(axes: "Axes", plot: Plot) -> None:
    left = [0.0] * len(plot.labels)
    for series in plot.series:
        bars = axes.barh(plot.labels, series.values, left=left, color=_COLOURS[series.name], label=series.name)
        texts = [f"{value:.0f} %" if value >= 6 else "" for value in series.values]
        axes.bar_label(bars, texts, label_type="center", color=_on(_COLOURS[series.name]), fontsize=8)
        left = [before + value for before, value in zip(left, series.values, strict=True)]
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"{plot.unit}, in per cent")
    axes.invert_yaxis()
    axes.legend(frameon=False, ncols=len(plot.series), loc="lower left", bbox_to_anchor=(-0.01, 1), **_NARROW)


def _draw_bars(axes: "Axes", plot: Plot) -> None:
    step, most = 1 / _bars(plot), max(max(series.values) for series in plot.series)
    for number, series in enumerate(plot.series):
        places = [at + (number - (len(plot.series) - 1) / 2) * step for at in range(len(plot.labels))]
        bars = axes.barh(places, series.values, 0.9 * step, color=_COLOURS.get(series.name, _OTHER_COLOUR))
        texts = [f"{series.name}: {text}" for text in plot.table().rows[number][1:]]
        axes.bar_label(bars, texts, padding=4, fontsize=8)
    axes.set_xlim(0, 1.45 * most)
    axes.set_yticks(range(len(plot.labels)), plot.labels)
    axes.set_xlabel(plot.unit)
    axes.invert_yaxis()


def _on(colour: str) -> str:
    """Return black or white, whichever is legible on a colour."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return _INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#FFFFFF"


def text_of(results: list[Result], block: Block) -> str:
    """Return the lines of a block of the document: for each plot its sentence, the image, and its values."""
    parts = []
    for result in (result for result in results if result.block == block):
        parts.append(f"{result.source()}:")
        for plot in result.plots():
            image = f"![{plot.title}: {plot.unit}, by {plot.across}](images/performance/{plot.name}.svg)"
            parts += [f"**{plot.title}.** {plot.caption}", image, plot.table().markdown()]
    return "\n\n".join(parts)


def update_document(text: str, results: list[Result]) -> str:
    """Return the document with what the results say in its places."""
    for block in BLOCKS:
        begin, end = f"<!-- plots, {block}: begin -->", f"<!-- plots, {block}: end -->"
        lines = "\n\n".join(part for part in (begin, text_of(results, block), end) if part)
        before, _, rest = text.partition(begin)
        text = before + lines + rest.partition(end)[2]
    return text


def main() -> None:
    """Draw everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the results are")
    parser.add_argument("--images", type=Path, default=IMAGES, help="where the plots go")
    parser.add_argument("--format", choices=("svg", "png"), default="svg", help="what they are; the document has SVG")
    options = parser.parse_args()
    results = read_results(options.results)
    options.images.mkdir(parents=True, exist_ok=True)
    if options.images == IMAGES and options.format == "svg":
        for old in IMAGES.iterdir():
            old.unlink()
    for plot in (plot for result in results for plot in result.plots()):
        draw(plot, options.images / f"{plot.name}.{options.format}")
        print(options.images / f"{plot.name}.{options.format}")
    if options.results == RESULTS:
        DOCUMENT.write_text(update_document(DOCUMENT.read_text("utf-8"), results), "utf-8")


if __name__ == "__main__":
    main()
