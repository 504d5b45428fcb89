"""One plot as values: what is drawn, and what a document says beside it."""

import hashlib
import json
from typing import Literal

import attrs

from benchmarks.report import Table


@attrs.frozen(kw_only=True)
class Series:
    """The values of one line, or of one colour of bars."""

    name: str
    values: tuple[float, ...]
    shown: tuple[str, ...] = ()
    """The values as a table has them; by default those numbers."""


@attrs.frozen(kw_only=True)
class Plot:
    """One plot: a value of each series at each of its points."""

    name: str
    kind: Literal["lines", "bars", "shares"] = "lines"
    """``shares`` are parts of a whole, next to each other; ``bars`` stand below each other."""
    title: str
    caption: str
    across: str
    """What the points are."""
    axis: str = ""
    """The same as the axis has it, where that is more."""
    unit: str
    """What the values are."""
    labels: tuple[str, ...]
    """The points, in words."""
    places: tuple[float, ...] = ()
    """Where the points of lines lie."""
    series: tuple[Series, ...]

    def digest(self) -> str:
        """Return what the drawn file carries, so that it can be told from that of other figures."""
        text = json.dumps(attrs.asdict(self), sort_keys=True)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def table(self) -> Table:
        """Return the same values as a table."""
        rows = [(each.name, *(each.shown or map(_number, each.values))) for each in self.series]
        return Table((f"{self.unit}, by {self.across}", *self.labels), rows)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
