"""The transformer as a function of arrays: compiled where that pays, with a pass's adapters on where it has some."""

from collections.abc import Callable, Sequence

import mlx.core as mx
from mflux.models.flux2.model.flux2_transformer.flux2_kv_cache import Flux2KVCache
from mflux.utils.apple_silicon import AppleSiliconUtil

from mflux_api.engine.device import Device
from mflux_api.engine.kernels import cuda_dequantize
from mflux_api.engine.kernels.compiling import CompiledFunction
from mflux_api.engine.kernels.cpu_threads import Threads
from mflux_api.engine.kernels.cpu_transformer import CPUTransformer
from mflux_api.engine.kernels.fused_transformer import FusedTransformer
from mflux_api.engine.kernels.joint_projections import JointProjections
from mflux_api.engine.lora.applying import Adapted, Lora, ReadingLora, no_reading
from mflux_api.engine.weights.components import Components
from mflux_api.engine.weights.quantization import unpack_layers

Predict = Callable[..., mx.array]
"""The velocity from (tokens, position ids, embeddings, text ids, timestep), all of one batch; then from guidance and a
key-value cache, where the model takes them."""


class TransformerFunction:
    """The transformer of one set of components, with or without adapters."""

    def __init__(
        self,
        components: Components,
        device: Device,
        reading_lora: ReadingLora = no_reading,
        threads: Threads | None = None,
    ) -> None:
        """Take what is needed.

        Args:
            components: the transformer's.
            device: what it runs on.
            reading_lora: told which adapter is read.
            threads: who computes instead of mflux, on a CPU.
        """
        self._components = components
        self._threads = threads
        self._device = device
        self._reading_lora = reading_lora
        self._adapted: Adapted | None = None
        self._projections: JointProjections | None = None
        self.plain: Predict = self._compile()
        """The transformer without adapters."""

    def with_loras(self, loras: Sequence[Lora]) -> Predict:
        """Return the transformer with these adapters, which stay prepared until a pass has others.

        Raises:
            LoraError: an adapter's file cannot be used, or was made for another model.
            CheckpointError: the transformer is not in memory and cannot be read again.
        """
        if not loras:
            # A pass without adapters frees the memory of those before.
            self._adapted = None
            return self.plain
        if self._adapted is None or not self._adapted.fits(loras):
            self._adapted = None
            if self._is_fused:
                # Before an adapter is on one of them.
                self._joint()
            self._adapted = Adapted(self._components.transformer, loras, self._compile(), self._reading_lora)
        return self._adapted

    @property
    def warnings(self) -> tuple[str, ...]:
        """What of the adapters that are prepared is not used, a sentence each."""
        return () if self._adapted is None else self._adapted.warnings

    def forget_weights(self) -> None:
        """Drop what keeps the transformer's weights alive, so that the component can be freed."""
        # Adapters wrap its layers, and those have parts of the joint ones.
        self._adapted = None
        self._projections = None

    def unpack_weights(self) -> None:
        """Unpack quantized weights now, where each step would; the transformer's next reading has them packed again."""
        self.forget_weights()
        unpack_layers(self._components.transformer, cuda_dequantize.dequantize if self._is_fused else mx.dequantize)

    def _compile(self) -> Predict:
        """Return the transformer as the device computes it best, compiled where stock mflux does and on no CPU."""
        # There it would be 20 s of C++.
        compiled = self._device.is_gpu and not AppleSiliconUtil.is_m1_or_m2()
        if self._is_fused:
            cuda = self._device.kind == "cuda"
            return FusedTransformer(
                lambda: self._components.transformer,
                self._joint,
                cuda=cuda,
                compiled=compiled,
                spoiled=self._read_again,
            )
        predict = _as_function(self._components)
        if self._threads is not None:
            return CPUTransformer(lambda: self._components.transformer, predict, self._threads)
        if not compiled or self._components.info.caches_references:
            return predict
        return CompiledFunction(predict, lambda: [self._components.transformer], self._read_again)

    def _read_again(self) -> None:
        self.forget_weights()
        self._components.drop("transformer")

    @property
    def _is_fused(self) -> bool:
        return self._device.is_gpu and self._device.fast_path

    def _joint(self) -> JointProjections:
        """Return the joint projections, made when they are first needed: the transformer may not be in memory yet."""
        if self._projections is None:
            if self._device.kind == "cuda":
                cuda_dequantize.speed_up(self._components.transformer)
            self._projections = JointProjections(self._components.transformer)
        return self._projections


def _as_function(components: Components) -> Predict:
    """Return mflux's ``Flux2Transformer`` as a function that does not keep a freed transformer in memory."""

    def predict(
        latents: mx.array,
        ids: mx.array,
        embeddings: mx.array,
        text_ids: mx.array,
        timestep: mx.array,
        guidance: mx.array | None = None,
        cache: Flux2KVCache | None = None,
    ) -> mx.array:
        velocity: mx.array = components.transformer(
            hidden_states=latents,
            encoder_hidden_states=embeddings,
            timestep=timestep,
            img_ids=ids,
            txt_ids=text_ids,
            guidance=guidance,
            kv_cache=cache,
        )
        return velocity

    return predict
