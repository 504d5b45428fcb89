"""AdaLN's numbers of a step: the modulations of FLUX.2, which are the same for all blocks of a kind."""

from collections.abc import Sequence
from typing import Any

import attrs
import mlx.core as mx
from mflux.models.common.config.model_config import ModelConfig
from mlx import nn

from mflux_api.engine.kernels.row_operations import Modulation


@attrs.frozen(eq=False)
class Modulations:
    """What the timestep makes of the modulation layers: the gate of what is added, and the norm that follows."""

    image: tuple[Modulation, Modulation]
    """After a double block's attention, and after its feed-forward, whose norm is the next block's first."""
    text: tuple[Modulation, Modulation]
    single: Modulation
    last: Modulation
    """After the last block: the norm is the one before the projection to latents."""


def modulations_of(
    model: Any, times: Sequence[mx.array], dtype: mx.Dtype, before: int, plain: int, extracted: int
) -> Modulations:
    """Return the modulations of a step.

    Args:
        model: mflux's transformer.
        times: the timestep and maybe the guidance, one number each.
        dtype: what mflux rounds them to.
        before: tokens of the text.
        plain: tokens of the image that are not references of a model that sees them without noise.
        extracted: how many those are.
    """
    timestep = _scaled(times[0], dtype)
    guidance = _scaled(times[1], dtype) if len(times) > 1 else None
    embedded = [model.time_guidance_embed(timestep, guidance).astype(ModelConfig.precision)]
    of_text = model.double_stream_modulation_txt(embedded[0])
    if extracted:
        clean = model.time_guidance_embed(mx.zeros_like(timestep), guidance)
        embedded.append(clean.astype(ModelConfig.precision))

    def sets(layer: Any) -> list[list[mx.array]]:
        """Return shift, scale and gate of each part of a block, [sets, width]."""
        found = [layer(each) for each in embedded]
        return [[_as_sets(values) for values in zip(*part, strict=True)] for part in zip(*found, strict=True)]

    (shift_1, scale_1, gate_1), (shift_2, scale_2, gate_2) = sets(model.double_stream_modulation_img)
    ((shift, scale, gate),) = sets(model.single_stream_modulation)
    (text_shift_1, text_scale_1, text_gate_1), (text_shift_2, text_scale_2, text_gate_2) = (
        [_as_sets([numbers]) for numbers in part] for part in of_text
    )
    last = model.norm_out.linear(nn.silu(embedded[0]).astype(ModelConfig.precision))
    last_scale, last_shift = (mx.concatenate([each] * len(embedded), axis=0) for each in mx.split(last, 2, axis=-1))
    return Modulations(
        image=(Modulation(gate_1, scale_2, shift_2, plain), Modulation(gate_2, scale_1, shift_1, plain)),
        text=(Modulation(text_gate_1, text_scale_2, text_shift_2), Modulation(text_gate_2, text_scale_1, text_shift_1)),
        single=Modulation(gate, scale, shift, before + plain),
        last=Modulation(gate, last_scale, last_shift, before + plain),
    )


def _as_sets(values: Sequence[mx.array]) -> mx.array:
    return mx.concatenate([each.reshape(1, -1) for each in values], axis=0)


def _scaled(number: mx.array, dtype: mx.Dtype) -> mx.array:
    """Return a timestep or a guidance as mflux feeds it, [1]: from 0 to 1000, also where it came from 0 to 1."""
    rounded = number.reshape(-1)[:1].astype(dtype)
    return rounded * mx.where(rounded <= 1.0, 1000.0, 1.0).astype(dtype)
