"""Set-up for all tests."""

import os

import pytest
from hypothesis import HealthCheck, settings

from mflux_api.machine import DEVICES_VARIABLE

# A busy machine draws slowly; what counts is what is found.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")

# Exact pixels are those of float32 on a CPU, whatever this machine has, in this process and in every engine child.
os.environ[DEVICES_VARIABLE] = "cpu"

# Hundreds of servers and engine children start: without bytecode each of them compiles its imports anew, half of the
# suite's time on the processor.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


collect_ignore = ["clients"]
"""Real clients, in an environment of their own: ``uv run --project tests/clients pytest tests/clients``."""

WHY_SKIPPED = "only with --thorough: it takes long and has a shorter sibling"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--thorough", action="store_true", help="also run what takes long and has a shorter sibling")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files that take long first: of the processes none waits for the other's last file."""
    if not config.getoption("--thorough"):
        for item in items:
            if item.get_closest_marker("thorough") is not None:
                item.add_marker(
                    pytest.mark.skip(reason="only with --thorough: it takes long and has a shorter sibling")
                )
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)
