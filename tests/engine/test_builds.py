"""What is told of MLX's builds where they are not what this machine needs."""

from pathlib import Path

import pytest

from mflux_api.engine.builds import CPU, GPU, advise, installed


@pytest.mark.parametrize(
    ("builds", "on_gpu", "may_use_gpu", "gpu_here", "told"),
    [
        ((CPU,), False, True, True, "install the group cuda13 in its place"),
        ((CPU,), False, False, True, ""),
        ((CPU,), False, True, False, ""),
        ((GPU[0],), True, True, True, ""),
        ((GPU[0],), False, False, True, ""),
        ((CPU, GPU[0]), True, True, True, "mlx-cpu and mlx-cuda-13 are both installed"),
        ((CPU, GPU[0]), False, True, False, "mlx-cpu and mlx-cuda-13 are both installed"),
        ((), True, True, False, ""),
    ],
)
def test_only_what_is_not_as_it_should_be_is_told(
    tmp_path: Path, builds: tuple[str, ...], on_gpu: bool, may_use_gpu: bool, gpu_here: bool, told: str
) -> None:
    driver = tmp_path / "version"
    if gpu_here:
        driver.touch()
    said = advise(builds, on_gpu=on_gpu, may_use_gpu=may_use_gpu, driver=(tmp_path / "other", driver))
    assert (told in said) if told else (said == "")


def test_builds_that_are_installed_are_found() -> None:
    """This very environment has one of them, but for a Mac's."""
    found = installed()
    assert len(found) <= 1
    assert set(found) <= {CPU, *GPU}
