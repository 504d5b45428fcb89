"""One still image through SeedVR2: the pixels of mflux's own ``SeedVR2.generate_image``, with stages and a cancel.

A cancel is seen between tiles and between blocks.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import attrs
import mlx.core as mx
from mflux.models.common.config.model_config import ModelConfig
from mflux.models.common.schedulers.seedvr2_euler_scheduler import SeedVR2EulerScheduler
from mflux.models.common.vae.tiling_config import TilingConfig
from mflux.models.common.vae.vae_util import VAEUtil
from mflux.models.seedvr2.latent_creator.seedvr2_latent_creator import SeedVR2LatentCreator
from mflux.models.seedvr2.model.seedvr2_text_encoder.text_embeddings import SeedVR2TextEmbeddings
from mflux.models.seedvr2.variants.upscale.seedvr2_util import SeedVR2Util
from PIL import Image

from mflux_api.engine.sampling.decoding import to_pixels
from mflux_api.engine.sampling.passes import Event, ImageEvent, ShouldStop, StageEvent, StepEvent, Stopped
from mflux_api.engine.sampling.work_clock import WorkClock
from mflux_api.engine.upscaling import empty_sums
from mflux_api.engine.upscaling.seedvr2_components import UpscalerComponents, UpscalerPart
from mflux_api.images.rgb import RGBImage

empty_sums.guard()


@attrs.frozen
class UpscaleRequest:
    """One image to upscale.

    Raises:
        ValueError: it cannot be computed.
    """

    image: RGBImage
    """The given image, of any size."""
    resolution: int
    """The shorter side of the upscaled image in pixels; the ratio of the sides stays, and both are even."""
    seed: int
    softness: float = 0.0
    """0 to 1: how much detail of the given image is removed first, for the model to invent."""
    low_ram: bool = False
    """Keep one module in memory at a time."""

    def __attrs_post_init__(self) -> None:
        if min(self.image.size) < 1:
            raise ValueError("an image must have at least one pixel")
        if self.resolution < 2 or not 0 <= self.softness <= 1:
            raise ValueError("an upscaling needs a resolution of at least 2 and a softness from 0 to 1")


class Upscaler:
    """Runs requests on one set of components, on the thread that loaded them."""

    def __init__(self, components: UpscalerComponents) -> None:
        self.components = components

    def run(self, request: UpscaleRequest, should_stop: ShouldStop) -> Iterator[Event]:
        """Run one pass and yield its events, as ``Pipeline.run`` does: stages, one step, the image, the times.

        Raises:
            Stopped: ``should_stop`` returned true.
            CheckpointError: a module that is not in memory cannot be read again.
            NotFiniteError: the image's numbers overflow.
            RuntimeError: from MLX, for instance when the device has too little memory.
        """

        def check() -> None:
            if should_stop():
                raise Stopped

        clock = WorkClock()
        check()
        yield from clock.pausing(StageEvent("encoding"))
        # The parameter is called a path there, and takes an image too.
        given: Any = Image.frombytes("RGB", request.image.size, request.image.rgb)
        image, height, width = SeedVR2Util.preprocess_image(given, request.resolution, request.softness)
        latent = VAEUtil.encode(
            vae=_CancellableVAE(self.components.vae, check), image=image, tiling_config=TilingConfig()
        )
        condition = SeedVR2LatentCreator.create_condition(encoded_latent=latent)
        mx.eval(condition)
        self._release("vae", request)
        clock.lap()

        check()
        yield from clock.pausing(StageEvent("denoising"))
        latents = self._denoise(condition, request.seed, check)
        self._release("transformer", request)
        clock.lap()
        yield from clock.pausing(StepEvent(1, 1))

        check()
        yield from clock.pausing(StageEvent("decoding"))
        vae = _CancellableVAE(self.components.vae, check)
        decoded = VAEUtil.decode(vae=vae, latent=latents, tiling_config=TilingConfig())[:, :, :height, :width]
        pixels = to_pixels(SeedVR2Util.apply_color_correction(decoded, image[:, :, :height, :width]))
        self._release("vae", request)
        clock.lap()
        yield ImageEvent(0, request.seed, pixels)
        yield clock.done()

    def _release(self, part: UpscalerPart, request: UpscaleRequest) -> None:
        if request.low_ram:
            self.components.drop(part)

    def _denoise(self, condition: mx.array, seed: int, check: Callable[[], None]) -> mx.array:
        """Take the one step from noise to the upscaled image's latents [1, 16, 1, height/8, width/8]."""
        config = SimpleNamespace(
            num_inference_steps=1, num_train_steps=ModelConfig.seedvr2_3b().num_train_steps, guidance=1.0
        )
        scheduler = SeedVR2EulerScheduler(config)
        noise = SeedVR2LatentCreator.create_noise_latents(
            seed=seed, height=condition.shape[-2], width=condition.shape[-1]
        )
        velocity = self._velocity(mx.concatenate([noise, condition], axis=1), scheduler.timesteps[0], check)
        latents: mx.array = scheduler.step(noise=velocity, timestep=0, latents=noise)
        mx.eval(latents)
        return latents

    def _velocity(self, vid: mx.array, timestep: mx.array, check: Callable[[], None]) -> mx.array:
        # SeedVR2Transformer's own modules in its order; evaluating in between changes no bit and lets a cancel in.
        transformer = self.components.transformer
        txt = transformer.txt_in(SeedVR2TextEmbeddings.load_positive())
        txt_shape = mx.full((txt.shape[0], 1), txt.shape[1], dtype=mx.int32)
        vid, vid_shape = transformer.vid_in(vid)
        emb = transformer.emb_in(timestep).reshape(-1, transformer.vid_dim, 2, 3)
        for block in transformer.blocks:
            check()
            vid, txt = block(vid=vid, txt=txt, emb=emb, vid_shape=vid_shape, txt_shape=txt_shape)
            mx.eval(vid, txt)
        check()
        if transformer.use_output_ada:
            vid = transformer._apply_out_ada(transformer.vid_out_norm(vid), emb=emb)
        velocity: mx.array = transformer.vid_out(vid, vid_shape)[0]
        return velocity


class _CancellableVAE:
    """A VAE for mflux's tiling that computes each tile before the next begins and sees a cancel in between."""

    def __init__(self, vae: Any, check: Callable[[], None]) -> None:
        self._vae = vae
        self._check = check
        self.latent_channels = vae.latent_channels
        self.spatial_scale = vae.spatial_scale

    def encode(self, image: mx.array) -> mx.array:
        return self._evaluate(self._vae.encode(image))

    def decode(self, latent: mx.array) -> mx.array:
        return self._evaluate(self._vae.decode(latent))

    def _evaluate(self, result: mx.array) -> mx.array:
        self._check()
        mx.eval(result)
        return result
