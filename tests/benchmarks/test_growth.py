"""What `benchmarks/growth.py` makes of its samples."""

import pytest

from benchmarks.client import Sample
from benchmarks.growth import CPU, PARTS, in_turns, quick, summarize


def sample(seconds: float, *, load: float = 0.0) -> Sample:
    return Sample(seconds=seconds, load=load, encode=0.1, denoise=seconds / 2, decode=0.2, total=seconds - 0.05 + load)


def test_summary_is_of_the_request_in_the_middle() -> None:
    found = summarize([sample(9.0), sample(1.0), sample(2.0)])
    assert (found["seconds"], found["fastest"], found["slowest"], found["samples"]) == (2.0, 1.0, 9.0, 3)
    assert found["engine_seconds"] == pytest.approx(0.1 + 1.0 + 0.2)


def test_of_an_even_number_the_lower_one_is_in_the_middle() -> None:
    assert summarize([sample(4.0), sample(1.0), sample(3.0), sample(2.0)])["seconds"] == 2.0


def test_parts_of_a_request_are_all_of_it() -> None:
    parts = summarize([sample(2.0)])["parts"]
    assert tuple(parts) == PARTS
    assert sum(parts.values()) == pytest.approx(2.0)
    assert parts["save"] == pytest.approx(2.0 - 0.05 - 1.3)
    assert parts["answer"] == pytest.approx(0.05)


def test_quick_measures_the_same_points() -> None:
    assert quick(CPU).sides == CPU.sides
    assert quick(CPU).samples < CPU.samples


def test_points_are_measured_in_turns() -> None:
    order = list[tuple[int, int]]()

    def measure(point: int, number: int) -> int:
        order.append((point, number))
        return 10 * point + number

    assert in_turns((1, 2), 3, measure) == {1: [10, 11, 12], 2: [20, 21, 22]}
    assert order == [(1, 0), (2, 0), (1, 1), (2, 1), (1, 2), (2, 2)]
