"""Sums over numbered things in the order of their numbers; whatever is asked costs a logarithm."""

from collections.abc import Iterator

_BITS = 4
_LEVELS = 6
"""Below the highest, of which one block stands for 2**20 numbers: it has a handful of blocks in years."""


class OrderedSums:
    """An amount for each number, and the sum of those before any number.

    A tree without nodes: each level has the sums of blocks of 16 blocks of the level below, and only of blocks that
    hold something, so that numbers that are gone cost nothing.
    """

    def __init__(self) -> None:
        self._levels: tuple[dict[int, int], ...] = tuple({} for _ in range(_LEVELS))

    def __bool__(self) -> bool:
        return bool(self._levels[-1])

    def __contains__(self, number: int) -> bool:
        return number in self._levels[0]

    def add(self, number: int, amount: int = 1) -> None:
        """Add to a number's amount, which is never negative; a number without an amount is not there."""
        block = number
        for sums in self._levels:
            value = sums.get(block, 0) + amount
            if value:
                sums[block] = value
            else:
                sums.pop(block, None)
            block >>= _BITS

    def remove(self, number: int) -> None:
        """Take a number out with its amount, if it is there."""
        self.add(number, -self._levels[0].get(number, 0))

    def total(self) -> int:
        """Return the sum of all amounts."""
        return sum(self._levels[-1].values())

    def before(self, number: int) -> int:
        """Return the sum of the amounts of all smaller numbers."""
        total, block = 0, number
        for sums in self._levels[:-1]:
            for sibling in range(block >> _BITS << _BITS, block):
                total += sums.get(sibling, 0)
            block >>= _BITS
        return total + sum(amount for top, amount in self._levels[-1].items() if top < block)

    def first(self) -> int | None:
        """Return the smallest number."""
        return next(iter(self), None)

    def __iter__(self) -> Iterator[int]:
        """Go through the numbers in their order."""
        yield from self._numbers_in(sorted(self._levels[-1]), _LEVELS - 2)

    def _numbers_in(self, blocks: list[int], level: int) -> Iterator[int]:
        if level < 0:
            yield from blocks
            return
        sums = self._levels[level]
        for block in blocks:
            first = block << _BITS
            children = [child for child in range(first, first + (1 << _BITS)) if child in sums]
            yield from self._numbers_in(children, level - 1)
