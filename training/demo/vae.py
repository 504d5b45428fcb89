"""FLUX.2's autoencoder in plain PyTorch, with diffusers' parameter names, and its latent space."""

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from mflux_api.engine.demo.layout import CheckpointShape

BATCH_NORM_EPSILON = 1e-4


class _GroupNorm(nn.GroupNorm):
    """A norm that stays in its input's precision: autocast would move twice the memory."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return functional.group_norm(x, self.num_groups, weight, bias, self.eps)


class _Resnet(nn.Module):
    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _GroupNorm(groups, inputs, eps=1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = _GroupNorm(groups, outputs, eps=1e-6)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class _Attention(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = _GroupNorm(groups, width, eps=1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(h).unsqueeze(1) for layer in (self.to_q, self.to_k, self.to_v))
        h = self.to_out[0](functional.scaled_dot_product_attention(q, k, v).squeeze(1))
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class _Middle(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([_Resnet(width, width, groups) for _ in range(2)])
        self.attentions = nn.ModuleList([_Attention(width, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class _Stage(nn.Module):
    """Residual blocks, followed in most stages by a change of size."""

    def __init__(self, inputs: int, outputs: int, layers: int, groups: int, scale: str | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([_Resnet(outputs if i else inputs, outputs, groups) for i in range(layers)])
        if scale == "down":
            self.downsamplers = nn.ModuleList([nn.ModuleDict({"conv": nn.Conv2d(outputs, outputs, 3, stride=2)})])
        if scale == "up":
            self.upsamplers = nn.ModuleList([nn.ModuleDict({"conv": nn.Conv2d(outputs, outputs, 3, padding=1)})])
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        if self.scale == "down":
            return self.downsamplers[0]["conv"](functional.pad(x, (0, 1, 0, 1)))
        if self.scale == "up":
            return self.upsamplers[0]["conv"](functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class _Encoder(nn.Module):
    def __init__(self, widths: tuple[int, ...], layers: int, groups: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            [
                _Stage(widths[max(i - 1, 0)], width, layers, groups, "down" if i < 3 else None)
                for i, width in enumerate(widths)
            ]
        )
        self.mid_block = _Middle(widths[-1], groups)
        self.conv_norm_out = _GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 64, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(functional.silu(self.conv_norm_out(self.mid_block(x))))


class _Decoder(nn.Module):
    def __init__(self, widths: tuple[int, ...], layers: int, groups: int) -> None:
        super().__init__()
        reverse = widths[::-1]
        self.conv_in = nn.Conv2d(32, reverse[0], 3, padding=1)
        self.mid_block = _Middle(reverse[0], groups)
        self.up_blocks = nn.ModuleList(
            [
                _Stage(reverse[max(i - 1, 0)], width, layers + 1, groups, "up" if i < 3 else None)
                for i, width in enumerate(reverse)
            ]
        )
        self.conv_norm_out = _GroupNorm(groups, reverse[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(reverse[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(functional.silu(self.conv_norm_out(x)))


class Autoencoder(nn.Module):
    """diffusers' ``AutoencoderKLFlux2``: images in -1..1 to 32 channels at an eighth of the size, and back."""

    def __init__(self, shape: CheckpointShape) -> None:
        super().__init__()
        parts = (shape.vae_widths, shape.vae_layers_per_block, shape.vae_norm_groups)
        self.encoder, self.decoder = _Encoder(*parts), _Decoder(*parts)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(64, 64, 1), nn.Conv2d(32, 32, 1)
        self.bn = nn.Module()
        self.bn.register_buffer("running_mean", torch.zeros(128))
        self.bn.register_buffer("running_var", torch.ones(128))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images [n, 3, H, W] in -1..1.

        Returns:
            The mean and the logarithm of the variance of the latents, [n, 32, H / 8, W / 8] each.
        """
        mean, log_variance = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def decode(self, z: Tensor) -> Tensor:
        """Decode latents [n, 32, h, w], not normalised, to images [n, 3, 8 h, 8 w] in -1..1."""
        return self.decoder(self.post_quant_conv(z))

    def pack(self, mean: Tensor) -> Tensor:
        """Turn latents [n, 32, h, w] into what the transformer sees: [n, h/2 x w/2, 128], normalised."""
        patches = patchify(mean.float())
        return ((patches - self._mean()) / self._deviation()).flatten(2).transpose(1, 2)

    def unpack(self, packed: Tensor, rows: int, columns: int) -> Tensor:
        """Undo ``pack``; ``rows`` and ``columns`` are those of the patches."""
        patches = packed.float().transpose(1, 2).unflatten(2, (rows, columns))
        return unpatchify(patches * self._deviation() + self._mean())

    def _mean(self) -> Tensor:
        return self.bn.running_mean.view(1, 128, 1, 1)

    def _deviation(self) -> Tensor:
        return torch.sqrt(self.bn.running_var.view(1, 128, 1, 1) + BATCH_NORM_EPSILON)


def patchify(x: Tensor) -> Tensor:
    """Make patches of 2 x 2 into channels, in diffusers' order: [n, c, h, w] to [n, 4 c, h/2, w/2]."""
    n, c, h, w = x.shape
    return x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, c * 4, h // 2, w // 2)


def unpatchify(x: Tensor) -> Tensor:
    """Undo ``patchify``."""
    n, c, h, w = x.shape
    return x.reshape(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, h * 2, w * 2)
