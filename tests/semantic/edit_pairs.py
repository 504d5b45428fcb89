"""The images that edits are tried on, rendered beforehand by ``training.demo.draw_pairs``."""

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.semantic.edit_cases import EDIT_CASES

FILE = Path(__file__).with_name("edit_pairs.webp")
SIDE = 256
Pixels = npt.NDArray[np.uint8]


def references(number: int, side: int = SIDE) -> list[Pixels]:
    """Return the references of case ``number``, ``side`` pixels wide and high."""
    return [_cell(number, column, side) for column in range(len(EDIT_CASES[number].before))]


def base(number: int, side: int = SIDE) -> Pixels:
    """Return the reference of case ``number`` whose layout the result keeps."""
    return _cell(number, EDIT_CASES[number].base, side)


def target(number: int, side: int = SIDE) -> Pixels:
    """Return what the renderer makes of the instruction of case ``number``."""
    return _cell(number, 2, side)


def _cell(row: int, column: int, side: int) -> Pixels:
    cut = _sheet()[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
    return np.asarray(Image.fromarray(cut).resize((side, side), Image.Resampling.BOX))


@cache
def _sheet() -> Pixels:
    with Image.open(FILE) as sheet:
        return np.asarray(sheet.convert("RGB"))
