"""Styles laid over finished images: watercolour, pixel art, ink, poster; and moods."""

import torch
import torch.nn.functional as functional
from torch import Tensor

from training.demo.world.fields import Canvas, mix, smoothstep

_LUMA = (0.299, 0.587, 0.114)


def _gray(image: Tensor) -> Tensor:
    weights = torch.tensor(_LUMA, device=image.device).view(1, 3, 1, 1)
    return (image * weights).sum(1, keepdim=True)


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian; ``sigma`` is in pixels."""
    radius = max(1, round(2.5 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / max(sigma, 0.3)) ** 2)
    kernel = kernel / kernel.sum()
    channels = image.shape[1]
    padded = functional.pad(image, (radius, radius, radius, radius), mode="replicate")
    across = functional.conv2d(padded, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return functional.conv2d(across, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


def apply_mood(canvas: Canvas) -> None:
    """Apply each scene's mood: more saturation and contrast where it is vibrant, pale and soft where it is pastel."""
    image, gray = canvas.image, _gray(canvas.image)
    vivid = (gray + (image - gray) * 1.45 - 0.5) * 1.06 + 0.5
    pale = mix(gray + (image - gray) * 0.72, torch.full_like(gray, 0.93), 0.45)
    image = mix(image, vivid.clamp(0, 1), canvas.has("mood", "vibrant"))
    canvas.image = mix(image, pale, canvas.has("mood", "pastel"))


def apply_style(canvas: Canvas) -> None:
    """Redraw each scene in its style."""
    styles = set(canvas.index("style").view(-1).tolist())
    plain = canvas.image
    for number, renderer in enumerate((_watercolor, _pixels, _ink, _poster), start=1):
        if number in styles:
            chosen = (canvas.index("style").view(-1) == number).nonzero().view(-1)
            canvas.image = canvas.image.index_copy(0, chosen, renderer(canvas, plain[chosen]))


def _watercolor(canvas: Canvas, image: Tensor) -> Tensor:
    grid = canvas.grid
    soft = _blur(image, 0.009 / grid.unit)
    gray = _gray(soft)
    washed = mix(gray + (soft - gray) * 1.1, torch.ones_like(gray), 0.3)
    bloom = torch.sin(grid.x * 7 + 2 * torch.sin(grid.y * 5)) * torch.sin(grid.y * 8 + 2 * torch.sin(grid.x * 6))
    edges = (soft - _blur(soft, 0.022 / grid.unit)) * 0.5
    washed = washed * (1 + 0.05 * bloom) + edges
    wobble = 0.012 * torch.sin(grid.x * 23 + 3 * torch.sin(grid.y * 9)) + 0.012 * torch.sin(grid.y * 27)
    border = torch.minimum(grid.half_width - grid.x.abs(), grid.half_height - grid.y.abs())
    paper = torch.tensor((0.985, 0.97, 0.935), device=grid.device).view(1, 3, 1, 1)
    return mix(washed, paper, 1 - smoothstep(0.015, 0.055, border + wobble)).clamp(0, 1)


def _pixels(canvas: Canvas, image: Tensor) -> Tensor:
    grid = canvas.grid
    # 32 blocks across the shorter side: 8 pixels at 256.
    block = max(2, round(1 / grid.unit / 32))
    small = functional.interpolate(image, size=(grid.height // block, grid.width // block), mode="area")
    gray = _gray(small)
    # Few strong colours show the blocks also where the scene is smooth.
    small = ((gray + (small - gray) * 1.2 - 0.5) * 1.15 + 0.5).clamp(0, 1)
    small = (small * 5).round() / 5
    return functional.interpolate(small, size=(grid.height, grid.width), mode="nearest")


def _ink(canvas: Canvas, image: Tensor) -> Tensor:
    grid = canvas.grid
    gray = _blur(_gray(image), 0.003 / grid.unit)
    spread = 0.5 + (gray - gray.mean((2, 3), keepdim=True)) * 1.3 + 0.12
    levels = sum(smoothstep(level - 0.04, level + 0.04, spread) for level in (0.22, 0.4, 0.6)) / 3
    tone = 0.2 + 0.78 * levels
    step = max(1, round(0.004 / grid.unit))
    dx = torch.roll(gray, -step, 3) - torch.roll(gray, step, 3)
    dy = torch.roll(gray, -step, 2) - torch.roll(gray, step, 2)
    border = torch.minimum(grid.half_width - grid.x.abs(), grid.half_height - grid.y.abs())
    line = smoothstep(0.07, 0.22, torch.sqrt(dx * dx + dy * dy)) * (border > 2 * grid.unit * step).float()
    tone = tone * (1 - 0.8 * line)
    paper = torch.tensor((0.965, 0.945, 0.895), device=grid.device).view(1, 3, 1, 1)
    black = torch.tensor((0.09, 0.09, 0.12), device=grid.device).view(1, 3, 1, 1)
    return mix(black, paper, tone)


def _poster(canvas: Canvas, image: Tensor) -> Tensor:
    """Reduce the image to few flat tones of strong colour."""
    gray = _gray(image)
    strong = (gray + (image - gray) * 1.35).clamp(0, 1)
    soft = 0.012
    scaled = strong * 4
    whole = scaled.floor()
    flat = (whole + smoothstep(0.5 - soft * 4, 0.5 + soft * 4, scaled - whole)) / 4
    return mix(flat, strong, 0.1).clamp(0, 1)
