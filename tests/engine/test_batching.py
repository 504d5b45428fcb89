"""How many images share a pass: a table of device, model and size."""

from typing import Any

import attrs
import pytest

from mflux_api.engine.sampling.batching import PassCost, images_per_pass


def cost(parameters: float, width: int, side: int, *, text: int = 512, branches: Any = 1) -> PassCost:
    """Return the cost of one square image."""
    return PassCost(parameters=int(parameters), width=width, tokens=text + side * side // 256, branches=branches)


DEMO = cost(16e6, 256, 256, text=64)
SMALL_4B, LARGE_4B = cost(3.9e9, 3072, 512), cost(3.9e9, 3072, 1024)
LARGE_9B = cost(9.1e9, 4096, 1024)


@pytest.mark.parametrize(
    ("device", "asked", "count"),
    [
        ("cpu", DEMO, 4),
        ("cpu", attrs.evolve(DEMO, branches=2), 4),
        ("cpu", SMALL_4B, 1),
        ("cpu", LARGE_9B, 1),
        ("metal", DEMO, 4),
        ("metal", SMALL_4B, 3),
        ("metal", attrs.evolve(SMALL_4B, branches=2), 1),
        ("metal", LARGE_4B, 1),
        ("metal", LARGE_9B, 1),
        ("cuda", SMALL_4B, 4),
        ("cuda", LARGE_4B, 4),
        ("cuda", attrs.evolve(LARGE_4B, branches=2), 3),
        ("cuda", LARGE_9B, 4),
        ("cuda", cost(9.1e9, 4096, 2048), 1),
    ],
)
def test_images_per_pass_is_a_table(device: Any, asked: PassCost, count: int) -> None:
    assert images_per_pass(device, asked) == count
