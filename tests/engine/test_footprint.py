"""What the service expects a model to take is what the engine then holds."""

import shutil
from pathlib import Path

import attrs
import mlx.core as mx
import pytest

from mflux_api.engine.demo.random_checkpoint import write_random_checkpoint
from mflux_api.engine.device import Device
from mflux_api.engine.weights.components import load_components
from mflux_api.engine.weights.quantization import replace_quantized_layers, unpack_layers
from mflux_api.engine.weights.quantized_cache import load_quantized
from mflux_api.storage.footprint import measure
from tests.support.checkpoint_shapes import TINY
from tests.support.loaded_components import held_bytes

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("bits", [None, 3, 4, 6, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_expected_bytes_are_the_bytes_that_are_held(
    tmp_path: Path, device: Device, bits: int | None, dtype: str
) -> None:
    folder = write_random_checkpoint(tmp_path / "model", TINY, dtype="float32" if dtype == "float32" else "bfloat16")
    float_bytes = 2 if device.is_gpu else 4
    expected = measure(folder, float_bytes=float_bytes, bits=bits)
    assert expected is not None
    if bits is None:
        assert held_bytes(load_components(folder)) == expected
    else:
        components = load_quantized(folder, bits, tmp_path / "q")
        assert held_bytes(components) == attrs.evolve(expected, unpacked=None)
        assert measure(tmp_path / "q", float_bytes=float_bytes) == expected
        replace_quantized_layers(components.transformer)
        unpack_layers(components.transformer, mx.dequantize)
        assert held_bytes(components).whole == expected.unpacked == components.resident_bytes


def test_low_ram_takes_the_largest_component_alone(tiny_folder: Path) -> None:
    footprint = measure(tiny_folder, float_bytes=4)
    assert footprint is not None
    assert (
        footprint.bytes_for(low_ram=True)
        == footprint.component_offload
        < footprint.whole
        == footprint.bytes_for(low_ram=False)
    )


@pytest.mark.parametrize("damage", ["vae", "transformer/diffusion_pytorch_model.safetensors", "model_index.json"])
def test_footprint_that_cannot_be_measured_is_not_guessed(tiny_folder: Path, tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    target = folder / damage
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.write_bytes(b"\xff" * 20)
    assert measure(folder, float_bytes=4) is None
    assert measure(tmp_path / "nowhere", float_bytes=4) is None
