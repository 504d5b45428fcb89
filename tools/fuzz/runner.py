"""A run: cases in turn, each judged, and the findings kept."""

import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import attrs

from tools.fuzz import http_bytes, images, json_bodies, safetensors
from tools.fuzz.case import Case, Maker, request
from tools.fuzz.exchange import Answer, judge, send
from tools.fuzz.target import Pulse, Target

KINDS: dict[str, Maker] = {
    "images": images.cases,
    "safetensors": safetensors.cases,
    "json": json_bodies.cases,
    "http": http_bytes.cases,
}
SETUP = ".setup"
"""Suffix of the file with what goes before an input."""
_WARM_UP = 5
_KEPT_OF_A_KIND = 5
"""Inputs kept of one finding: more of the same say nothing new."""


@attrs.frozen(kw_only=True)
class Limits:
    """When a run ends, and what it still takes for healthy."""

    seconds: float
    cases: int | None = None
    most_bytes: int = 8 * 2**20
    """How large an input may be."""
    clients: int = 1
    """How many send at one time. With several, a stall is a finding of each case that is on its way."""
    stall_seconds: float = 1.0
    """An answer of the health route that takes longer is a finding of its case."""
    health_seconds: float = 0.1
    """And so is a run whose 99th of 100 takes longer."""


@attrs.frozen
class Finding:
    """Something that must not be."""

    number: int
    what: str
    case: Case | None
    """``None`` for what belongs to the whole run."""


@attrs.define
class Report:
    """What a run has come to."""

    seed: int
    cases: Counter[str] = attrs.field(factory=Counter)
    statuses: Counter[int] = attrs.field(factory=Counter)
    findings: list[Finding] = attrs.field(factory=list)
    health: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """The median, the 99th of 100 and the slowest answer of the health route, in seconds."""


def mix(kinds: list[str], seed: int, most_bytes: int) -> Iterator[Case]:
    """Yield cases of these kinds in turn; the same seed yields the same cases for ever."""
    makers = [KINDS[kind](random.Random(f"{seed} {kind}"), most_bytes) for kind in kinds]
    for maker in cycle(makers):
        yield next(maker)


def run(
    target: Target, kinds: list[str], seed: int, limits: Limits, on_case: Callable[[Report], None] = lambda _: None
) -> Report:
    """Send cases until the time or their number is over, or the server is gone.

    Args:
        target: the server.
        kinds: of :data:`KINDS`.
        seed: what the cases are made of.
        limits: when to end, and what is healthy.
        on_case: called after each case.
    """
    report = Report(seed)
    # What it takes for good on its first requests (imports, a loaded model) is not held against later ones.
    for case in (*json_bodies.valid(), *images.valid()) * _WARM_UP:
        send(target, case)
    before = target.held()
    target.new_tracebacks()
    with Pulse(target) as pulse:
        clients = _Clients(target, mix(kinds, seed, limits.most_bytes), limits, report, pulse, on_case)
        with ThreadPoolExecutor(limits.clients) as threads:
            for client in [threads.submit(clients.run) for _ in range(limits.clients)]:
                client.result()
        number = sum(report.cases.values())
        if before is not None and (held := target.settled(before)) is not None:
            report.findings.append(Finding(number, f"it holds {held}; before it was {before}", None))
        report.health = (pulse.quantile(0.5), pulse.quantile(0.99), max(pulse.seconds, default=0.0))
    if report.health[1] > limits.health_seconds:
        report.findings.append(Finding(number, f"the 99th of 100 health answers took {report.health[1]:.2f} s", None))
    return report


class _Clients:
    """Threads that take the cases of a run one by one, and write into one report."""

    def __init__(
        self,
        target: Target,
        cases: Iterator[Case],
        limits: Limits,
        report: Report,
        pulse: Pulse,
        on_case: Callable[[Report], None],
    ) -> None:
        self._target = target
        self._cases = enumerate(cases)
        self._limits = limits
        self._report = report
        self._pulse = pulse
        self._on_case = on_case
        self._deadline = time.monotonic() + limits.seconds
        self._lock = threading.Lock()

    def run(self) -> None:
        """Be one of the clients, until there is nothing more to send."""
        while (numbered := self._next()) is not None:
            number, case = numbered
            seen = len(self._pulse.seconds)
            answers, found = _try(self._target, case)
            slowest = max(self._pulse.seconds[seen:], default=0.0)
            if slowest > self._limits.stall_seconds:
                found.append(f"health took {slowest:.1f} s meanwhile")
            if not self._target.alive():
                found.append("the server is gone")
            with self._lock:
                found += [f"log: {line[:300]}" for line in self._target.new_tracebacks()]
                self._report.cases[case.kind] += 1
                self._report.statuses.update(answer.status for answer in answers)
                self._report.findings += [Finding(number, what, case) for what in found]
                self._on_case(self._report)

    def _next(self) -> tuple[int, Case] | None:
        with self._lock:
            if time.monotonic() > self._deadline or not self._target.alive():
                return None
            number, case = next(self._cases)
            return None if self._limits.cases is not None and number >= self._limits.cases else (number, case)


def _try(target: Target, case: Case) -> tuple[list[Answer], list[str]]:
    """Return the answers to a case, and what is wrong with them."""
    answers: list[Answer] = []
    try:
        answers = send(target, case)
        # An accepted job is as good as run: cancelled, or those that take long would keep the next call waiting.
        for answer in answers:
            if answer.status == 200 and (job := re.search(rb'"job_id":"(\w+)"', answer.body)) is not None:
                send(target, Case(case.kind, "cancel", request("DELETE", f"/api/v1/jobs/{job.group(1).decode()}")))
    except TimeoutError:
        return answers, ["no answer and no end in time"]
    except OSError as error:
        return answers, [f"no connection: {error.strerror or type(error).__name__}"]
    return answers, judge(case, answers)


def keep(report: Report, folder: Path) -> list[Path]:
    """Write the inputs of the findings into a folder, and beside each what is wrong; return the inputs' files."""
    kept: list[Path] = []
    seen: Counter[str] = Counter()
    for finding in report.findings:
        seen[finding.what[:40]] += 1
        if finding.case is None or seen[finding.what[:40]] > _KEPT_OF_A_KIND:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{finding.case.kind}-{report.seed}-{finding.number}.bin"
        path.write_bytes(finding.case.data)
        if finding.case.setup:
            path.with_suffix(SETUP).write_bytes(finding.case.setup)
        said = {"seed": report.seed, "number": finding.number, "how": finding.case.how, "what": finding.what}
        path.with_suffix(".json").write_text(json.dumps(said, indent=2) + "\n", "utf-8")
        kept.append(path)
    return kept
