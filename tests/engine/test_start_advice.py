"""What to do about an engine that does not come up."""

import pytest

from mflux_api.engine.start_advice import with_advice


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("ImportError: libgomp.so.1: cannot open shared object file: No such file", "install the package that has it"),
        ("ImportError: libcuda.so.1: cannot open shared object file", "install the driver, or MLX's CPU build"),
        ("ImportError: libopenblas.so.0: cannot open shared object file", "install libopenblas0"),
        ("ImportError: libmlx.so: cannot open shared object file: No such file or directory", "install mlx-cpu, or"),
        ("killed by SIGKILL", "when memory is out (its log says so)"),
        ("RuntimeError: can't start new thread", "raise the limit of processes"),
        ("it cannot be started (Resource temporarily unavailable)", "raise the limit of processes"),
        ("ImportError: numpy.core.multiarray failed to import", "install the dependencies again"),
    ],
)
def test_what_helps_follows_the_reason(reason: str, advice: str) -> None:
    said = with_advice(reason)
    assert said.startswith(f"{reason}; ")
    assert advice in said


def test_reason_that_is_not_known_stays_as_it_is() -> None:
    assert with_advice("exited with status 3") == "exited with status 3"
