"""Coordinates, masks, colours and random numbers: what every part of the renderer uses.

Images are [n, 3, H, W] in 0..1, masks and lengths broadcast against [n, 1, H, W]. Lengths are in units of the shorter
side, measured from the image's centre, so that a scene looks the same at every size.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from training.demo.world.spec import CHOICES, FIELDS

SIDE_POSITIONS = (0.22, 0.5, 0.78)
_TABLE_SIZE = 4096
# Numbers of a seeded scene: its own, and after them a branch for each part that not every scene has.
_OWN_NUMBERS, _BRANCH_NUMBERS, _BRANCHES = 96, 16, 3


def smoothstep(low: Tensor | float, high: Tensor | float, x: Tensor) -> Tensor:
    """Step softly from 0 at ``low`` to 1 at ``high``, as GLSL's function of this name."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def over(image: Tensor, color: Tensor, mask: Tensor) -> Tensor:
    """Lay ``color`` over ``image`` where ``mask`` is 1."""
    return image + (color - image) * mask


def mix(one: Tensor, other: Tensor, share: Tensor | float) -> Tensor:
    """Mix two values: ``one`` at share 0, ``other`` at share 1."""
    return one + (other - one) * share


class Grid:
    """The coordinates of the pixels of one image size, given in pixels."""

    def __init__(self, height: int, width: int, device: torch.device) -> None:
        self.height, self.width, self.device = height, width, device
        short = min(height, width)
        self.unit = 1.0 / short
        self.half_width, self.half_height = width / short / 2, height / short / 2
        columns = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / short - self.half_width
        rows = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / short - self.half_height
        self.x = columns.view(1, 1, 1, width)
        self.y = rows.view(1, 1, height, 1)
        self.across = (self.x + self.half_width) / (2 * self.half_width)
        self.down = (self.y + self.half_height) / (2 * self.half_height)

    def at_x(self, share: Tensor | float) -> Tensor:
        """Return the x of a share of the width."""
        return torch.as_tensor(share, device=self.device) * (2 * self.half_width) - self.half_width

    def at_y(self, share: Tensor | float) -> Tensor:
        """Return the y of a share of the height."""
        return torch.as_tensor(share, device=self.device) * (2 * self.half_height) - self.half_height

    def inside(self, distance: Tensor) -> Tensor:
        """Return an antialiased mask of where the signed ``distance`` is negative."""
        return (0.5 - distance / (1.5 * self.unit)).clamp(0, 1)


_TABLES: dict[torch.device, Tensor] = {}


def fixed_noise(index: Tensor, seed: int) -> Tensor:
    """Return a number in 0..1 for every integer, the same in every image: what never varies is learnt sharply."""
    if index.device not in _TABLES:
        generator = torch.Generator().manual_seed(20_240_607)
        _TABLES[index.device] = torch.rand(_TABLE_SIZE, generator=generator).to(index.device)
    return _TABLES[index.device][(index.long() * 131 + seed * 977) % _TABLE_SIZE]


def rgb(code: str) -> tuple[float, float, float]:
    """Turn ``#rrggbb`` into three numbers in 0..1."""
    red, green, blue = (int(code[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def _seeded_numbers(seeds: Tensor, count: int) -> Tensor:
    """Return numbers in 0..1, [n, count], by integer arithmetic on the seeds, so the same on every device."""
    x = (seeds[:, None] * 1_000_003 + torch.arange(count, device=seeds.device) * 7_368_787) & 0x7FFFFFFF
    for factor in (0x45D9F3B, 0x3C6EF35F):
        x = ((x ^ (x >> 16)) * factor) & 0x7FFFFFFF
    return ((x ^ (x >> 15)) & 0xFFFFFF).float() / 0x1000000


_COLORS: dict[tuple[tuple[str, ...], torch.device], Tensor] = {}


def colors(codes: tuple[str, ...], device: torch.device) -> Tensor:
    """Return colours as a table [len, 3]."""
    key = (codes, device)
    if key not in _COLORS:
        _COLORS[key] = torch.tensor([rgb(code) for code in codes], device=device)
    return _COLORS[key]


@dataclass
class Canvas:
    """A batch of scenes of one place while it is rendered."""

    grid: Grid
    rows: Tensor
    """[n, fields], on the device."""
    generator: torch.Generator
    seeds: Tensor | None = None
    """[n]: one seed gives the same random numbers, whatever the size, the batch and the other fields."""
    image: Tensor = field(init=False)
    light: Tensor = field(init=False)
    """[n, 3, 1, 1]: what a white surface looks like."""
    haze: Tensor = field(init=False)
    """[n, 3, 1, 1]: the air near the horizon."""
    body_x: Tensor = field(init=False)
    body_y: Tensor = field(init=False)

    def __post_init__(self) -> None:
        grid = self.grid
        self.image = torch.zeros(self.count, 3, grid.height, grid.width, device=grid.device)
        self.light = torch.ones(self.count, 3, 1, 1, device=grid.device)
        self.haze = torch.ones(self.count, 3, 1, 1, device=grid.device)
        self.body_x = self.body_y = torch.zeros(self.count, 1, 1, 1, device=grid.device)
        self._numbers = (
            None if self.seeds is None else _seeded_numbers(self.seeds, _OWN_NUMBERS + _BRANCHES * _BRANCH_NUMBERS)
        )
        self._used = 0

    @property
    def count(self) -> int:
        """How many scenes."""
        count: int = self.rows.shape[0]
        return count

    def index(self, name: str) -> Tensor:
        """Return a field's choice, [n, 1, 1, 1]."""
        return self.rows[:, FIELDS.index(name)].view(-1, 1, 1, 1)

    def has(self, name: str, *choices: str) -> Tensor:
        """Return 1.0 where the field is one of the choices, else 0.0, [n, 1, 1, 1]."""
        values = self.index(name)
        if name not in CHOICES:
            return (values == 1).float()
        found = torch.zeros_like(values, dtype=torch.bool)
        for choice in choices:
            found |= values == CHOICES[name].index(choice)
        return found.float()

    def pick(self, name: str, codes: tuple[str, ...]) -> Tensor:
        """Return the colour of a field's choice, [n, 3, 1, 1]."""
        return self.color(codes, self.index(name))

    def color(self, codes: tuple[str, ...], index: Tensor) -> Tensor:
        """Return colours by index [n, 1, 1, 1] as [n, 3, 1, 1]."""
        return colors(codes, self.grid.device)[index.view(-1)].view(-1, 3, 1, 1)

    def plain(self, code: str) -> Tensor:
        """Return one colour for all scenes, [1, 3, 1, 1]."""
        return colors((code,), self.grid.device).view(1, 3, 1, 1)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return a random number per scene, uniform between the bounds, [n, 1, 1, 1]."""
        if self._numbers is None:
            values = torch.rand(self.count, 1, 1, 1, device=self.grid.device, generator=self.generator)
        else:
            values = self._numbers[:, self._used].view(-1, 1, 1, 1)
            self._used += 1
        return low + (high - low) * values

    def branch(self, number: int) -> None:
        """Take a seeded scene's next numbers from branch 0, 1 or 2, however many were used before."""
        self._used = _OWN_NUMBERS + number * _BRANCH_NUMBERS

    def integers(self, choices: int) -> Tensor:
        """Return a random integer below ``choices`` per scene, [n, 1, 1, 1]."""
        return (self.uniform() * choices).long().clamp(max=choices - 1)

    def side(self, name: str, jitter: float = 0.03) -> Tensor:
        """Return the x of the side that a field names, [n, 1, 1, 1]."""
        table = torch.tensor(SIDE_POSITIONS, device=self.grid.device)
        return self.grid.at_x(table[self.index(name)] + self.uniform(-jitter, jitter))

    def lay(self, color: Tensor, mask: Tensor) -> None:
        """Draw ``color`` where ``mask`` is 1."""
        self.image = over(self.image, color, mask)
