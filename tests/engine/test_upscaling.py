"""SeedVR2 on a small random checkpoint, against mflux's own call on the same weights."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
import pytest
from mflux.models.common.vae.tiling_config import TilingConfig
from mflux.models.common.vae.vae_util import VAEUtil
from mflux.models.seedvr2.model.seedvr2_text_encoder.text_embeddings import SeedVR2TextEmbeddings
from mflux.models.seedvr2.model.seedvr2_transformer.window import WindowPartitioner
from PIL import Image

from mflux_api.catalog.files import UPSCALER_FILES
from mflux_api.engine.checkpoint import CheckpointError
from mflux_api.engine.device import Device
from mflux_api.engine.sampling.decoding import NotFiniteError
from mflux_api.engine.sampling.passes import DoneEvent, Event, ImageEvent, StageEvent, StepEvent
from mflux_api.engine.sampling.pipeline import Stopped
from mflux_api.engine.upscaling.seedvr2_components import UpscalerComponents, is_upscaler
from mflux_api.engine.upscaling.upscaler import Upscaler, UpscaleRequest, _CancellableVAE
from mflux_api.engine.weights.parameters import named_arrays
from mflux_api.images.rgb import RGBImage
from mflux_api.jobs.upscaling import upscaled_size
from mflux_api.storage.footprint import measure
from tests.support.pipeline_runs import Pixels, consume, never, rgb_image
from tests.support.upscaler_checkpoint import load_stock, write_upscaler

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, device: Device) -> Path:
    return write_upscaler(tmp_path_factory.mktemp("seedvr2") / "model")


@pytest.fixture(scope="module")
def upscaler(folder: Path) -> Upscaler:
    return Upscaler(UpscalerComponents(folder))


def _request(width: int = 48, height: int = 32, resolution: int = 64, softness: float = 0.0) -> UpscaleRequest:
    rgb = rgb_image(64, 64).rgb[: width * height * 3]
    return UpscaleRequest(image=RGBImage(width, height, rgb), resolution=resolution, seed=42, softness=softness)


def _upscale(upscaler: Upscaler, request: UpscaleRequest) -> list[Pixels]:
    return [event.pixels for event in upscaler.run(request, never) if isinstance(event, ImageEvent)]


@pytest.mark.parametrize(
    ("width", "height", "resolution", "softness"),
    [(48, 32, 64, 0.0), (33, 47, 70, 0.5)],
    ids=["even sides", "odd sides"],
)
def test_pixels_are_those_of_mflux_own_call(
    upscaler: Upscaler, folder: Path, tmp_path: Path, width: int, height: int, resolution: int, softness: float
) -> None:
    request = _request(width, height, resolution, softness)
    (ours,) = _upscale(upscaler, request)
    # The size that the service announces before anything runs.
    assert (ours.shape[1], ours.shape[0]) == upscaled_size(width, height, resolution)
    file = tmp_path / "given.png"
    Image.frombytes("RGB", (width, height), request.image.rgb).save(file)
    stock = load_stock(folder).generate_image(seed=42, image_path=file, resolution=resolution, softness=softness)
    assert np.array_equal(ours, np.asarray(stock.image.convert("RGB")))
    assert min(ours.shape[:2]) in (resolution, resolution - 1)
    assert ours.std() > 10


def test_upscaled_image_that_overflows_is_an_error_and_not_a_black_image(folder: Path) -> None:
    components = UpscalerComponents(folder)
    components.vae.decoder.conv_out.weight[0] = float("nan")
    with pytest.raises(NotFiniteError):
        _upscale(Upscaler(components), _request())


def test_several_windows_are_those_of_mflux_own_transformer(upscaler: Upscaler, folder: Path) -> None:
    """Above 320 x 320 pixels there is more than one; without the VAE, which would take half a minute."""
    vid, timestep = mx.random.normal((1, 33, 1, 44, 48), key=mx.random.key(1)), mx.array(1000.0)
    text = SeedVR2TextEmbeddings.load_positive()
    expected = load_stock(folder).transformer(vid=vid, txt=text, timestep=timestep)
    assert mx.array_equal(upscaler._velocity(vid, timestep, lambda: None), expected)
    assert WindowPartitioner(mx.array([[1, 22, 24]]), (4, 3, 3)).window_counts == [4]


def test_seed_and_softness_matter(upscaler: Upscaler) -> None:
    request = attrs.evolve(_request(), seed=1)
    (one,), (other,) = _upscale(upscaler, request), _upscale(upscaler, attrs.evolve(request, seed=2))
    (soft,) = _upscale(upscaler, attrs.evolve(request, softness=1.0))
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, soft)


def test_stages_step_image_and_times(upscaler: Upscaler) -> None:
    events = list(upscaler.run(_request(), never))
    assert [event.stage for event in events if isinstance(event, StageEvent)] == ["encoding", "denoising", "decoding"]
    assert [(event.step, event.steps) for event in events if isinstance(event, StepEvent)] == [(1, 1)]
    done = events[-1]
    assert isinstance(done, DoneEvent)
    assert min(done.encode_s, done.denoise_s, done.decode_s) > 0


@pytest.mark.parametrize("checks", range(1, 9))
def test_cancel_is_seen_within_tiles_and_blocks(upscaler: Upscaler, checks: int) -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) >= checks

    seen: list[Event] = []
    with pytest.raises(Stopped):
        consume(upscaler.run(_request(), stop), seen)
    assert len(asked) == checks
    assert not any(isinstance(event, ImageEvent) for event in seen)


def test_cancel_is_seen_at_every_tile_of_a_large_image() -> None:
    begun: list[int] = []

    class Cheap:
        latent_channels, spatial_scale = 16, 8

        def encode(self, image: mx.array) -> mx.array:
            begun.append(1)
            return mx.zeros((1, 16, 1, image.shape[-2] // 8, image.shape[-1] // 8))

    def check() -> None:
        if len(begun) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        VAEUtil.encode(
            vae=_CancellableVAE(Cheap(), check), image=mx.zeros((1, 3, 1024, 1024)), tiling_config=TilingConfig()
        )


def test_low_ram_keeps_one_module_at_a_time_and_generates_the_same(upscaler: Upscaler, folder: Path) -> None:
    offloading = Upscaler(UpscalerComponents(folder))
    assert offloading.components.resident == frozenset()
    request = attrs.evolve(_request(), low_ram=True)
    seen: list[tuple[str, list[str]]] = []
    pixels = []
    for event in offloading.run(request, never):
        seen.append((type(event).__name__, sorted(offloading.components.resident)))
        if isinstance(event, ImageEvent):
            pixels.append(event.pixels)
    assert {tuple(resident) for _, resident in seen} == {()}
    assert np.array_equal(pixels[0], _upscale(upscaler, _request())[0])


def test_expected_bytes_are_the_bytes_that_are_held(upscaler: Upscaler, folder: Path, device: Device) -> None:
    upscaler.components.load_all()
    sizes = []
    for module in (upscaler.components.transformer, upscaler.components.vae):
        arrays = {id(array): array for _, array in named_arrays(module)}
        sizes.append(sum(array.nbytes for array in arrays.values()))
    footprint = measure(folder, float_bytes=2 if device.is_gpu else 4)
    assert footprint is not None
    assert (footprint.whole, footprint.component_offload) == (sum(sizes), max(sizes))


def test_a_folder_that_is_not_an_upscaler(tiny_folder: Path, folder: Path) -> None:
    assert is_upscaler(folder)
    assert not is_upscaler(tiny_folder)


@pytest.mark.parametrize(
    ("part", "name", "expected"),
    [
        ("transformer", "txt_in.weight", "transformer: txt_in.weight is missing"),
        ("transformer", "blocks.3.attn.proj_out.all.bias", r"blocks.3.attn.proj_out.(vid|txt).bias .* is missing"),
        ("vae", "decoder.conv_out.weight", "vae: decoder.conv_out.weight of shape .* is missing"),
    ],
)
def test_parameter_that_is_missing(folder: Path, tmp_path: Path, part: str, name: str, expected: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    tensors: Any = mx.load(str(copy / UPSCALER_FILES[part]))
    kept = {key: tensor for key, tensor in tensors.items() if key != name}
    assert len(kept) < len(tensors)
    mx.eval(kept)
    mx.save_safetensors(str(copy / UPSCALER_FILES[part]), kept)
    with pytest.raises(CheckpointError, match=expected):
        UpscalerComponents(copy)


def test_file_that_is_cut_off(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    file = copy / UPSCALER_FILES["vae"]
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="download it again"):
        UpscalerComponents(copy)


def test_mlx_still_dies_of_an_empty_running_sum_which_is_why_it_is_guarded() -> None:
    code = "import mlx.core as mx; print(mx.cumsum(mx.array([])).tolist())"
    died = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, check=False)
    assert died.returncode != 0, "MLX has learned it: mflux_api/engine/upscaling/empty_sums.py can go"


def test_image_with_a_wrong_number_of_bytes_cannot_be_upscaled() -> None:
    with pytest.raises(ValueError, match="must have 3 bytes per pixel"):
        attrs.evolve(_request().image, width=47)


@pytest.mark.parametrize(
    "wrong", [{"image": RGBImage(0, 0, b"")}, {"resolution": 1}, {"softness": 1.5}, {"softness": -0.1}]
)
def test_what_cannot_be_computed(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"needs|must"):
        attrs.evolve(_request(), **wrong)
