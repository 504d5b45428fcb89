"""How long jobs take, learned from what was measured: pure arithmetic, no clock of its own.

A job is the load of its model where it is not in memory, what comes before the first step (reading prompt, LoRAs and
images), its steps, and behind them each image's rest (decoding, saving).
"""

from collections.abc import Callable, Mapping

import attrs

from mflux_api.jobs.resolve import ResolvedRequest

Work = Callable[[int], float]

_WEIGHT = 0.3
"""Weight of the newest measurement in the moving average."""
_PIXELS_PER_TOKEN = 256
_TEXT_TOKENS = 512
"""What every step has besides the image's tokens (klein and dev; the others' is in the next table)."""
_FEWER_TEXT_TOKENS: Mapping[str, int] = {"demo": 64, "demo-base": 64}
_ATTENTION_TOKENS = 30_000
"""Tokens at which attention costs as much as all else; 1024² takes 3.27 times 512² on an H200, and 3.29 with this."""
_FIXED_REST = 0.018
"""Seconds of an image's rest that do not grow with it (H200: 27 ms at 512², 50 ms at 1024²)."""


@attrs.frozen
class Kind:
    """What runs have in common whose times are those of the same work in other sizes."""

    model: str
    references: int
    loras: int
    with_guidance: bool
    """Whether there may be a second branch in each step."""
    low_ram: bool

    @staticmethod
    def of(request: ResolvedRequest) -> "Kind":
        """Return the kind of a request's run."""
        return Kind(
            model=request.model,
            references=len(request.init_images),
            loras=len(request.lora_files),
            with_guidance=request.guidance > 1.0,
            low_ram=request.low_ram,
        )

    def distance(self, other: "Kind") -> tuple[int, ...]:
        """Return how much another kind of the same model differs; what costs most comes first."""
        return (
            abs(self.references - other.references),
            self.with_guidance != other.with_guidance,
            self.low_ram != other.low_ram,
            abs(self.loras - other.loras),
            # Of two that are as near the same one is taken each time.
            other.references,
            other.loras,
        )

    def step_work(self, pixels: int) -> float:
        """Return what a step of an image costs against one of another size."""
        tokens = _FEWER_TEXT_TOKENS.get(self.model, _TEXT_TOKENS) + pixels / _PIXELS_PER_TOKEN
        return tokens + tokens * tokens / _ATTENTION_TOKENS


@attrs.define
class _Average:
    value: float | None = None
    count: int = 0

    def add(self, measured: float) -> None:
        self.count += 1
        # The first ones count alike: of a few steps none is worth more.
        weight = max(_WEIGHT, 1 / self.count)
        self.value = measured if self.value is None else (1 - weight) * self.value + weight * measured


@attrs.define
class _Measured:
    start: _Average = attrs.field(factory=_Average)
    """Seconds before the first step of a run."""
    steps: dict[int, _Average] = attrs.field(factory=dict)
    """Seconds of one denoising step of one image, by its pixels."""
    rests: dict[int, _Average] = attrs.field(factory=dict)
    """Seconds of an image behind its steps."""


@attrs.frozen(kw_only=True)
class Rates:
    """Seconds of what a run consists of, for images of one size."""

    start: float
    """Of what comes before its first step."""
    step: float
    """Of one denoising step of one image."""
    rest: float
    """Of one image behind its steps."""


class Estimates:
    """Moving averages per kind of device, kind of run, and size.

    A size that was never seen is scaled from those that were: from two by the line through both, from one by what a
    transformer's step costs. A kind that was never seen is taken to be like the one that differs least.
    """

    def __init__(self) -> None:
        self._measured: dict[tuple[str | None, str], dict[Kind, _Measured]] = {}
        self._loads: dict[tuple[str | None, str], _Average] = {}

    def add_load(self, model: str, device: str | None, seconds: float) -> None:
        """Learn from the load of a model on a kind of device."""
        self._loads.setdefault((device, model), _Average()).add(seconds)

    def add_start(self, request: ResolvedRequest, device: str | None, seconds: float) -> None:
        """Learn from what a run took before its first step."""
        self._of(request, device).start.add(seconds)

    def add_step(self, request: ResolvedRequest, device: str | None, seconds: float) -> None:
        """Learn from one denoising step of one image."""
        self._of(request, device).steps.setdefault(_pixels(request), _Average()).add(seconds)

    def add_rest(self, request: ResolvedRequest, device: str | None, seconds: float) -> None:
        """Learn from the time one image took behind its steps."""
        self._of(request, device).rests.setdefault(_pixels(request), _Average()).add(seconds)

    def load(self, model: str, device: str | None) -> float:
        """Return the seconds that a model's load takes; 0 while nothing is known of it."""
        average = self._loads.get((device, model))
        return 0.0 if average is None else average.value or 0.0

    def remaining(
        self, request: ResolvedRequest, device: str | None, *, begun: bool = False, step: int = 0, image: int = 0
    ) -> float | None:
        """Return the seconds a job still needs, or ``None`` while nothing is known of its model on that device.

        Args:
            request: what the job runs.
            device: the kind of device that it runs on.
            begun: whether its first step has begun.
            step: steps done, of all images that are being generated together.
            image: images done.
        """
        rates = self.rates(Kind.of(request), _pixels(request), device)
        if rates is None:
            return None
        images = request.num_images - image
        start = 0.0 if begun or step or image else rates.start
        return max(0.0, start + (request.steps_run * images - step) * rates.step + images * rates.rest)

    def rest(self, request: ResolvedRequest, device: str | None) -> float | None:
        """Return the seconds of one image behind its steps, or ``None`` while nothing is known of the model."""
        rates = self.rates(Kind.of(request), _pixels(request), device)
        return None if rates is None else rates.rest

    def rates(self, kind: Kind, pixels: int, device: str | None) -> Rates | None:
        """Return what the parts of a run take for images of a size, or ``None`` while nothing is known of the model."""
        measured = self._nearest(kind, device)
        if measured is None:
            return None
        return Rates(
            start=measured.start.value or 0.0,
            step=_at(measured.steps, kind.step_work, pixels, fixed=0.0),
            rest=_at(measured.rests, float, pixels, fixed=_FIXED_REST),
        )

    def _of(self, request: ResolvedRequest, device: str | None) -> _Measured:
        kinds = self._measured.setdefault((device, request.model), {})
        return kinds.setdefault(Kind.of(request), _Measured())

    def _nearest(self, kind: Kind, device: str | None) -> _Measured | None:
        kinds = self._measured.get((device, kind.model), {})
        known = [other for other, measured in kinds.items() if measured.steps]
        return kinds[min(known, key=kind.distance)] if known else None


def _at(measured: Mapping[int, _Average], work: Work, pixels: int, *, fixed: float) -> float:
    """Return the seconds of something at a size, from what it took at others.

    Args:
        measured: its seconds by pixels.
        work: tells how it grows with the pixels.
        pixels: the size.
        fixed: seconds that do not grow, where only one size was measured.
    """
    if not measured:
        return 0.0
    if pixels in measured:
        return measured[pixels].value or 0.0
    wanted = work(pixels)
    # Sizes on both sides first: between two measurements a line is nearly right, whatever it is made of.
    near = sorted(measured, key=lambda seen: max(work(seen), wanted) / min(work(seen), wanted))
    first = near[0]
    second = next((seen for seen in near[1:] if (seen < pixels) is not (first < pixels)), near[1] if near[1:] else None)
    seconds, share = measured[first].value or 0.0, wanted / work(first)
    if second is None:
        fixed = min(fixed, seconds * 2 / 3)
        return fixed + (seconds - fixed) * share
    slope = ((measured[second].value or 0.0) - seconds) / (work(second) - work(first))
    # Nothing gets faster as it grows, nor slower by more than it grows.
    low, high = sorted((seconds, seconds * share))
    return min(max(seconds + slope * (wanted - work(first)), low), high)


def _pixels(request: ResolvedRequest) -> int:
    width, height = request.size
    return width * height
