"""``python -m tools.fuzz``: against a server of its own, or one that is there; ``--replay`` sends one input again."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from tools.fuzz.case import Case
from tools.fuzz.exchange import judge, send
from tools.fuzz.runner import KINDS, SETUP, Limits, Report, keep, run
from tools.fuzz.target import Target, started

_BAR_WIDTH = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz, print what was found, and return 1 if anything was."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description="Mutated inputs against a server.")
    parser.add_argument("kind", nargs="?", default="all", choices=[*KINDS, "all"])
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default: 1)")
    parser.add_argument("--cases", type=int, help="end after so many")
    parser.add_argument(
        "--seed", type=int, default=None, help="the same seed makes the same inputs (default: the time)"
    )
    parser.add_argument("--most-mb", type=float, default=8.0, help="how large an input may be (default: 8)")
    parser.add_argument("--clients", type=int, default=1, help="how many send at one time (default: 1)")
    parser.add_argument("--url", help="a running server in place of a new one; it gets jobs, LoRAs and much noise")
    parser.add_argument("--pid", type=int, help="its process, to see what it holds")
    parser.add_argument("--key", help="an API key of it")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="folder for the inputs of findings")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="send one kept input again")
    options = parser.parse_args(arguments)
    with nullcontext(Target(options.url, options.pid, key=options.key)) if options.url else started() as target:
        if options.replay is not None:
            return _replay(target, options.replay)
        seed = int(time.time()) if options.seed is None else options.seed
        kinds = [*KINDS] if options.kind == "all" else [options.kind]
        limits = Limits(
            seconds=options.minutes * 60,
            cases=options.cases,
            most_bytes=int(options.most_mb * 2**20),
            clients=max(1, options.clients),
        )
        report = run(target, kinds, seed, limits, _progress(limits))
    _summarize(report, keep(report, options.keep))
    return 1 if report.findings else 0


def _progress(limits: Limits) -> Callable[[Report], None]:
    """Draw a bar on a terminal, and nothing elsewhere."""
    began = time.monotonic()

    def draw(report: Report) -> None:
        if sys.stderr.isatty():
            part = min(1.0, (time.monotonic() - began) / limits.seconds)
            bar = ("█" * round(part * _BAR_WIDTH)).ljust(_BAR_WIDTH, "·")
            count = sum(report.cases.values())
            sys.stderr.write(f"\r[{bar}] {part:4.0%}  {count} inputs, {len(report.findings)} findings")
            sys.stderr.flush()

    return draw


def _summarize(report: Report, kept: Sequence[Path]) -> None:
    median, high, worst = (1000 * seconds for seconds in report.health)
    print(f"\nseed {report.seed}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(report.cases.items())))
    print("statuses: " + ", ".join(f"{status}: {count}" for status, count in sorted(report.statuses.items())))
    print(f"health: median {median:.0f} ms, 99 of 100 within {high:.0f} ms, slowest {worst:.0f} ms")
    for finding in report.findings:
        line = f"  {finding.number}: {finding.what}" + (f" [{finding.case.how}]" if finding.case is not None else "")
        # Inputs have characters that no terminal takes.
        print(line.encode("ascii", "backslashreplace").decode())
    print(f"{len(report.findings)} findings" + (f"; their inputs: {kept[0].parent}" if kept else ""))


def _replay(target: Target, path: Path) -> int:
    setup = path.with_suffix(SETUP)
    before = setup.read_bytes() if setup.is_file() else b""
    case = Case("replay", path.name, path.read_bytes(), before, well_formed=not path.name.startswith("http"))
    answers = send(target, case)
    for answer in answers:
        print(answer.status, answer.body[:500].decode("utf-8", "replace"))
    found = judge(case, answers)
    print("\n".join(found) or "nothing is wrong with it")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
