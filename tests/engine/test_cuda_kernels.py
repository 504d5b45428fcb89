"""What becomes of the fast path on a machine that cannot compile CUDA's kernels."""

from typing import Any

import pytest

from mflux_api.engine.device import Device
from mflux_api.engine.kernels import cuda_kernels
from mflux_api.engine.kernels.cuda_kernels import checked

CUDA = Device(kind="cuda", name="a GPU", fast_path=True)


def test_without_kernels_it_is_mfluxs_way_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("nvrtcCompileProgram failed")

    monkeypatch.setattr(cuda_kernels, "kernel", fail)
    told: list[str] = []
    assert checked(CUDA, told.append) == Device(kind="cuda", name="a GPU")
    (warning,) = told
    assert "cannot be compiled" in warning
    assert "nvrtc" not in warning
    assert "nvrtcCompileProgram failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "device",
    [
        Device(kind="cuda", name="a GPU"),
        Device(kind="metal", name="a Mac", fast_path=True),
        Device(kind="cpu", name="a CPU", fast_path=True),
    ],
)
def test_devices_that_use_no_kernel_are_not_asked_for_one(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_kernels, "usable", lambda: pytest.fail("it was tried"))
    assert checked(device, pytest.fail) is device


def test_kernels_that_work_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_kernels, "usable", lambda: True)
    assert checked(CUDA, pytest.fail) is CUDA
