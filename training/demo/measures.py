"""What an image shows, by simple arithmetic on its pixels; numpy only.

A check is a measure's name and its arguments: ("dark",), ("colored_thing", "red", "left"). The thresholds were
chosen on images of the procedural renderer, before the last training run. Each measure returns whether it holds, and
the value that decided.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Check = tuple[str, ...]

_SIDES = {"left": (0.0, 0.38), "center": (0.33, 0.67), "right": (0.62, 1.0)}
# Hue in degrees, from and to; saturation and value at least.
_HUES = {
    "red": (345, 16, 0.45, 0.2),
    "orange": (14, 42, 0.5, 0.4),
    "yellow": (40, 66, 0.45, 0.45),
    "green": (75, 165, 0.3, 0.12),
    "cyan": (165, 200, 0.35, 0.3),
    "blue": (205, 245, 0.45, 0.2),
    "purple": (248, 292, 0.3, 0.15),
    "pink": (293, 352, 0.25, 0.5),
    "golden": (30, 62, 0.35, 0.35),
}


class _Case(Protocol):
    @property
    def prompt(self) -> str: ...

    @property
    def checks(self) -> Sequence[Check]: ...


@dataclass(frozen=True)
class Verdict:
    """Which of an image's checks fail, with the values found."""

    failures: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether none fails."""
        return not self.failures

    def __str__(self) -> str:
        return "; ".join(self.failures) or "holds"


def judge(checks: Sequence[Check], pixels: Pixels) -> Verdict:
    """Apply every check to an image [H, W, 3]."""
    failures = []
    for name, *arguments in checks:
        holds, value = MEASURES[name](pixels, *arguments)
        if not holds:
            failures.append(f"{' '.join((name, *arguments))}: {value:.2f}")
    return Verdict(tuple(failures))


def shuffled_rates(
    cases: Sequence[_Case], images: Sequence[Pixels], offsets: int = 7
) -> tuple[float, dict[str, float]]:
    """Measure how often the checks hold on the images of other prompts.

    Args:
        cases: The case of each image.
        images: Images [H, W, 3].
        offsets: How many images of other prompts a case meets.

    Returns:
        How often all checks of a case hold, and the rate of each check.
    """
    held: list[bool] = []
    each: dict[str, list[bool]] = {}
    for index, case in enumerate(cases):
        for number in range(1, offsets + 1):
            at = (index + 1 + number * len(cases) // (offsets + 1)) % len(cases)
            if cases[at].prompt == case.prompt:
                continue
            verdicts = [judge([check], images[at]).holds for check in case.checks]
            held.append(all(verdicts))
            for check, verdict in zip(case.checks, verdicts, strict=True):
                each.setdefault(" ".join(check), []).append(verdict)
    return float(np.mean(held)), {name: round(float(np.mean(values)), 3) for name, values in sorted(each.items())}


def _unit(pixels: Pixels) -> Floats:
    return pixels.astype(np.float64) / 255


def _light(pixels: Pixels) -> Floats:
    light: Floats = _unit(pixels) @ np.array([0.299, 0.587, 0.114])
    return light


def _hsv(pixels: Pixels) -> tuple[Floats, Floats, Floats]:
    rgb = _unit(pixels)
    high, low = rgb.max(-1), rgb.min(-1)
    span = np.maximum(high - low, 1e-9)
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    sixth = np.where(high == r, (g - b) / span % 6, np.where(high == g, (b - r) / span + 2, (r - g) / span + 4))
    return sixth * 60, (high - low) / np.maximum(high, 1e-9), high


def color_mask(pixels: Pixels, color: str) -> npt.NDArray[np.bool_]:
    """Find where an image [H, W, 3] has a colour, as a mask [H, W]."""
    hue, saturation, value = _hsv(pixels)
    if color == "white":
        return (saturation < 0.16) & (value > 0.72)
    if color == "black":
        return value < 0.22
    start, end, least_saturation, least_value = _HUES[color]
    within = (hue >= start) & (hue <= end) if start <= end else (hue >= start) | (hue <= end)
    return within & (saturation >= least_saturation) & (value >= least_value)


def _rows(pixels: Pixels, start: float, end: float) -> Pixels:
    return pixels[int(start * pixels.shape[0]) : int(np.ceil(end * pixels.shape[0]))]


def _above(value: float, least: float) -> tuple[bool, float]:
    return bool(value >= least), float(value)


def _below(value: float, most: float) -> tuple[bool, float]:
    return bool(value <= most), float(value)


def dark(pixels: Pixels) -> tuple[bool, float]:
    """Night: the mean brightness is low."""
    return _below(float(_light(pixels).mean()), 0.27)


def bright(pixels: Pixels) -> tuple[bool, float]:
    """Day: the mean brightness is high."""
    return _above(float(_light(pixels).mean()), 0.5)


def warm(pixels: Pixels) -> tuple[bool, float]:
    """Sunset or sunrise: the lower sky is red to yellow."""
    sky = _unit(_rows(pixels, 0.15, 0.5))
    return _above(float((sky[..., 0] - sky[..., 2]).mean()), 0.12)


def blue_sky(pixels: Pixels) -> tuple[bool, float]:
    """A clear day: the upper sky is bright and blue."""
    sky = _rows(pixels, 0.0, 0.25)
    blue = _unit(sky)
    return _above(float((blue[..., 2] - blue[..., 0]).mean()) * float(_light(sky).mean() > 0.38), 0.2)


def gray(pixels: Pixels) -> tuple[bool, float]:
    """Fog, rain, storm or ink: hardly any colour."""
    return _below(float(_hsv(pixels)[1].mean()), 0.36)


def colorful(pixels: Pixels) -> tuple[bool, float]:
    """Many strong hues: the number of twelfths of the colour circle with a share of the image."""
    hue, saturation, value = _hsv(pixels)
    strong = (saturation > 0.4) & (value > 0.35)
    counts = np.histogram(hue[strong], bins=12, range=(0, 360))[0] / hue.size
    return _above(float((counts > 0.03).sum()), 4)


def pale(pixels: Pixels) -> tuple[bool, float]:
    """Fog: bright, and with little contrast."""
    light = _light(pixels)
    return _below(float(np.percentile(light, 95) - np.percentile(light, 5)) + 0.5 * float(light.mean() < 0.5), 0.47)


def light_at(pixels: Pixels, side: str) -> tuple[bool, float]:
    """The brightest spot of the sky (the sun, the moon) is on its side; the value is its place across."""
    sky = _light(_rows(pixels, 0.04, 0.56))
    size = max(3, round(min(pixels.shape[:2]) * 0.09))
    blurred = _box_blur(sky, size)
    column = float(np.unravel_index(int(blurred.argmax()), blurred.shape)[1]) + size / 2
    place = column / pixels.shape[1]
    contrast = float(blurred.max() - np.median(sky))
    start, end = _SIDES[side]
    return start <= place <= end and contrast > 0.12, place


def _box_blur(values: Floats, size: int) -> Floats:
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    blurred: Floats = (sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]) / size**2
    return blurred


def colored_thing(pixels: Pixels, color: str, side: str) -> tuple[bool, float]:
    """A colour is concentrated on a side: its share there is over twice that of the rest of the image."""
    mask = color_mask(pixels, color)[int(0.06 * pixels.shape[0]) :]
    width = mask.shape[1]
    start, end = (int(edge * width) for edge in _SIDES[side])
    inside = float(mask[:, start:end].mean())
    outside = float(np.delete(mask, np.s_[start:end], axis=1).mean())
    # A uniform colour everywhere gives 1; nothing there gives 0.
    return _above(inside / (outside + 0.012) * float(inside > 0.025), 2.2)


def colored_land(pixels: Pixels, color: str) -> tuple[bool, float]:
    """The land below the horizon has a colour."""
    return _above(float(color_mask(_rows(pixels, 0.56, 0.9), color).mean()), 0.4)


def white_land(pixels: Pixels) -> tuple[bool, float]:
    """Snow on the ground."""
    land = _rows(pixels, 0.6, 0.86)
    hue, saturation, _ = _hsv(land)
    del hue
    return _above(float(((saturation < 0.2) & (_light(land) > 0.62)).mean()), 0.5)


def blue_water(pixels: Pixels) -> tuple[bool, float]:
    """Sea or lake: blue below the horizon."""
    water = _unit(_rows(pixels, 0.66, 0.97))
    return _above(float((water[..., 2] - water[..., 0]).mean()), 0.16)


def sandy(pixels: Pixels) -> tuple[bool, float]:
    """The ground has the colour of sand."""
    land = _unit(_rows(pixels, 0.65, 0.97))
    r, g, b = land[..., 0], land[..., 1], land[..., 2]
    return _above(float(((r > g) & (g > b) & (r - b > 0.12)).mean()), 0.65)


def woody(pixels: Pixels) -> tuple[bool, float]:
    """A forest: strong vertical edges in the dark lower middle, few in the sky."""
    band, sky = _light(_rows(pixels, 0.48, 0.85)), _light(_rows(pixels, 0.0, 0.25))
    step = max(1, pixels.shape[1] // 128)
    across = np.abs(band[:, step:] - band[:, :-step]).mean()
    quiet = np.abs(sky[:, step:] - sky[:, :-step]).mean()
    return _above(float(across - quiet) * float(np.median(band) < 0.55), 0.014)


def windows(pixels: Pixels) -> tuple[bool, float]:
    """A city at night: small bright spots in the dark."""
    band = _light(_rows(pixels, 0.4, 0.97))
    step = max(1, pixels.shape[1] // 128)
    edges = np.abs(band[:, step:] - band[:, :-step]).mean() + np.abs(band[step:] - band[:-step]).mean()
    return _above(float(edges) * float(np.percentile(band, 40) < 0.4), 0.026)


def neon(pixels: Pixels) -> tuple[bool, float]:
    """Neon light: much of the image is violet, magenta or cyan."""
    mask = color_mask(pixels, "purple") | color_mask(pixels, "pink") | color_mask(pixels, "cyan")
    hue, saturation, value = _hsv(pixels)
    mask |= (hue > 248) & (hue < 340) & (saturation > 0.4) & (value > 0.12)
    return _above(float(mask.mean()), 0.4)


def black_sky(pixels: Pixels) -> tuple[bool, float]:
    """Outer space: dark from top to bottom."""
    light = _light(pixels)
    return _below(float(np.median(light)) + float(np.median(_light(_rows(pixels, 0.8, 1.0)))), 0.36)


def blocks(pixels: Pixels) -> tuple[bool, float]:
    """Pixel art: steps in brightness lie on a grid."""
    light = _light(pixels)
    size = max(2, round(min(pixels.shape[:2]) / 32))
    steps = np.abs(np.diff(light, axis=1)).mean(0)
    on_grid = np.arange(steps.size) % size == size - 1
    return _above(float(steps[on_grid].mean() / (steps[~on_grid].mean() + 0.0015)), 2.5)


def ink(pixels: Pixels) -> tuple[bool, float]:
    """An ink drawing: little colour, bright paper, dark lines."""
    light = _light(pixels)
    is_drawing = float(np.percentile(light, 75) > 0.55 and np.percentile(light, 3) < 0.55)
    return _above((1 - float(_hsv(pixels)[1].mean())) * is_drawing, 0.83)


def paper_border(pixels: Pixels) -> tuple[bool, float]:
    """Watercolour: the paper shows at the edges."""
    edge = max(2, round(min(pixels.shape[:2]) * 0.012))
    light = _light(pixels)
    rim = np.concatenate(
        [light[:edge].ravel(), light[-edge:].ravel(), light[:, :edge].ravel(), light[:, -edge:].ravel()]
    )
    return _above(float(np.median(rim)), 0.9)


def mirrored(pixels: Pixels) -> tuple[bool, float]:
    """A lake: the band above the water's edge is seen again below it, upside down."""
    light = _light(pixels)
    rows = light.shape[0]
    best = -1.0
    for edge in np.arange(0.55, 0.66, 0.0125):
        line, reach = int(edge * rows), int(0.17 * rows)
        upper, lower = light[line - reach : line][::-1], light[line : line + reach]
        upper, lower = (part - part.mean(1, keepdims=True) for part in (upper, lower))
        norm = np.sqrt((upper**2).sum() * (lower**2).sum()) + 1e-3
        best = max(best, float((upper * lower).sum() / norm))
    return _above(best, 0.45)


MEASURES: dict[str, Callable[..., tuple[bool, float]]] = {
    measure.__name__: measure
    for measure in (
        dark, bright, warm, blue_sky, gray, colorful, pale, light_at, colored_thing, colored_land, white_land,
        blue_water, sandy, woody, windows, neon, black_sky, blocks, ink, paper_border, mirrored,
    )
}  # fmt: skip


def values(checks: Sequence[Check], pixels: Pixels) -> dict[str, float]:
    """Return the value of every check, for choosing thresholds."""
    return {" ".join(check): round(MEASURES[check[0]](pixels, *check[1:])[1], 3) for check in checks}
