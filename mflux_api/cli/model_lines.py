"""Models as the command line lists them: those that can be used first, in lines of 80 characters."""

import json
from collections.abc import Iterable

import attrs

from mflux_api.cli.table import table

READY = "ready"


@attrs.frozen(kw_only=True)
class ModelLine:
    """One model of the list."""

    model: str
    state: str
    size_gb: float | None
    weights: str
    licence: str
    origin: str
    """Where its files come from."""


def weights_text(quantization: str, bits: int | None) -> str:
    """Return how many bits the weights have, and whether they are quantized on this machine."""
    known = {"none": "full", "stored": f"{bits}-bit", "runtime": f"{bits}-bit, made here"}
    return known.get(quantization, quantization)


def print_models(lines: Iterable[ModelLine], *, long: bool, as_json: bool) -> None:
    """Print them, those on disk first; the licence and the origin only where a long list is asked for."""
    ordered = sorted(lines, key=lambda line: (line.state != READY, line.state == "not downloaded"))
    if as_json:
        print(json.dumps([attrs.asdict(line) for line in ordered], indent=2))
        return
    header = ("MODEL", "STATE", "SIZE", "WEIGHTS") + (("LICENCE", "FROM") if long else ())
    print(table([header, *(_row(line, long=long) for line in ordered)]))


def _row(line: ModelLine, *, long: bool) -> tuple[str, ...]:
    size = "" if line.size_gb is None else f"{line.size_gb:.2f} GB"
    return (line.model, line.state, size, line.weights) + ((line.licence, line.origin) if long else ())
