"""Loading a SeedVR2 checkpoint: two files, their names mapped, every dimension from the shapes in them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from mflux.models.seedvr2.model.seedvr2_transformer.transformer import SeedVR2Transformer
from mflux.models.seedvr2.model.seedvr2_vae.vae import SeedVR2VAE
from mflux.models.seedvr2.weights.seedvr2_weight_mapping import SeedVR2WeightMapping
from mlx import nn

from mflux_api.catalog.files import UPSCALER_FILES
from mflux_api.engine.checkpoint import CheckpointError, blaming, read_tensors
from mflux_api.engine.stored_tensors import StoredTensor
from mflux_api.engine.weights.lazy_modules import LazyModules, OpenedModule, Reader
from mflux_api.engine.weights.parameters import expected_tensors
from mflux_api.engine.weights.reading import Report, no_report

UpscalerPart: TypeAlias = Literal["transformer", "vae"]
_PARTS: tuple[UpscalerPart, ...] = ("transformer", "vae")

_BLOCK = re.compile(r"blocks\.(\d{1,3})\.")
# Where both streams share a layer the file has it once, and mflux's module under both names.
_SHARED = re.compile(r"(blocks\.\d+\.attn\.\w+)\.all\.")
_TEXT_WIDTH = 5120  # width of the prompt embedding that mflux carries
_VAE_BLOCKS = 4


def is_upscaler(path: Path) -> bool:
    """Whether a folder holds SeedVR2."""
    return (path / UPSCALER_FILES["transformer"]).is_file()


class UpscalerComponents(LazyModules[UpscalerPart]):
    """The two modules of one SeedVR2 checkpoint."""

    def __init__(self, path: Path, report: Report = no_report) -> None:
        """Check the folder ``path``; no weights are read.

        Args:
            path: the folder.
            report: told how far the reading is, whenever a part is read.

        Raises:
            CheckpointError: a file is missing or corrupt, or a parameter is missing or of the wrong shape.
        """

        def reader(part: UpscalerPart) -> Reader:
            return lambda read: _open(path, part).fill(read)

        sizes = {part: _open(path, part).file_bytes for part in _PARTS}
        super().__init__({part: reader(part) for part in _PARTS}, sizes, report)

    @property
    def transformer(self) -> nn.Module:
        """Mflux's SeedVR2Transformer."""
        return self._module("transformer")

    @property
    def vae(self) -> nn.Module:
        """Mflux's SeedVR2VAE."""
        return self._module("vae")


def _open(path: Path, part: UpscalerPart) -> OpenedModule:
    tensors = read_tensors(path, UPSCALER_FILES[part])
    with blaming(part, "dimensions in its file"):
        if part == "transformer":
            tensors = _separate_streams(tensors)
            module = _build_transformer(tensors)
            mapping = SeedVR2WeightMapping.get_transformer_mapping(num_blocks=module.num_layers)
        else:
            module = _build_vae(tensors)
            mapping = SeedVR2WeightMapping.get_vae_mapping()
    expected = expected_tensors(module, mapping)
    # The released files may hold more than the tests' files do; only what is needed is demanded.
    found = {name: tensor for name, tensor in tensors.items() if name in expected}
    opened = OpenedModule(part, module, expected, found)
    opened.check()
    return opened


def _separate_streams(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    separate: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if _SHARED.match(name):
            separate |= {_SHARED.sub(rf"\1.{stream}.", name): tensor for stream in ("vid", "txt")}
        separate[name] = tensor
    return separate


def _build_transformer(tensors: Mapping[str, StoredTensor]) -> nn.Module:
    layers = max((int(found.group(1)) for name in tensors if (found := _BLOCK.match(name))), default=-1) + 1
    width = _shape("transformer", tensors, "vid_in.proj.weight")[0]
    head_dim = _shape("transformer", tensors, "blocks.0.attn.norm_q.vid.weight")[0]
    inner = _shape("transformer", tensors, "blocks.0.attn.proj_out.vid.weight")[1]
    text_width, text_in = _shape("transformer", tensors, "txt_in.weight")
    if text_in != _TEXT_WIDTH or text_width != width or inner % head_dim:
        raise CheckpointError(f"transformer: SeedVR2 with {width} channels and {head_dim} per head is not supported.")
    transformer: nn.Module = SeedVR2Transformer(
        vid_dim=width,
        txt_in_dim=text_in,
        heads=inner // head_dim,
        head_dim=head_dim,
        rope_dim=head_dim,
        num_layers=layers,
        mm_layers=sum(f"blocks.{layer}.mlp.vid.proj_in.weight" in tensors for layer in range(layers)),
    )
    return transformer


def _build_vae(tensors: Mapping[str, StoredTensor]) -> nn.Module:
    names = (f"encoder.down_blocks.{block}.resnets.0.conv1.weight" for block in range(_VAE_BLOCKS))
    vae: nn.Module = SeedVR2VAE(block_out_channels=tuple(_shape("vae", tensors, name)[0] for name in names))
    return vae


def _shape(part: str, tensors: Mapping[str, StoredTensor], name: str) -> tuple[int, ...]:
    if name not in tensors or tensors[name].ndim == 0:
        raise CheckpointError(f"{part}: {name} is missing.")
    return tuple(tensors[name].shape)
