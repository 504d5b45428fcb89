"""How long jobs take, learned from the steps that were measured: pure arithmetic, no clock of its own."""

import attrs

from mflux_api.jobs.resolve import ResolvedRequest

_WEIGHT = 0.3
"""Weight of the newest measurement in the moving average."""


@attrs.define
class _Average:
    value: float | None = None

    def add(self, measured: float) -> None:
        self.value = measured if self.value is None else (1 - _WEIGHT) * self.value + _WEIGHT * measured


@attrs.define
class _Measured:
    step: _Average = attrs.field(factory=_Average)
    """Seconds of one denoising step."""
    rest: _Average = attrs.field(factory=_Average)
    """Seconds of an image outside its steps: reading the prompt, decoding, saving."""


@attrs.frozen(kw_only=True)
class Rates:
    """Seconds for each pixel of an image."""

    step: float
    """Of one denoising step."""
    rest: float
    """Of an image outside its steps."""


class Estimates:
    """Moving averages per kind of device, model, number of init images, and size.

    A size that was never seen is scaled from the nearest one that was. Edits are measured apart: their references cost
    time at every step.
    """

    def __init__(self) -> None:
        self._measured: dict[tuple[str | None, str, int], dict[int, _Measured]] = {}

    def add_step(self, request: ResolvedRequest, device: str | None, seconds: float) -> None:
        """Learn from one denoising step on a kind of device."""
        self._of(request, device).step.add(seconds)

    def add_rest(self, request: ResolvedRequest, device: str | None, seconds: float) -> None:
        """Learn from the time one image took outside its steps."""
        self._of(request, device).rest.add(seconds)

    def remaining(self, request: ResolvedRequest, device: str | None, *, step: int = 0, image: int = 0) -> float | None:
        """Return the seconds a job still needs, or ``None`` while nothing is known of its model on that device.

        Args:
            request: what the job runs.
            device: the kind of device that it runs on.
            step: steps done, of all images that are being generated together.
            image: images done.
        """
        pixels = _pixels(request)
        rates = self.rates(request.model, len(request.init_images), pixels, device)
        if rates is None:
            return None
        images = request.num_images - image
        return max(0.0, pixels * ((request.steps_run * images - step) * rates.step + images * rates.rest))

    def rest(self, request: ResolvedRequest, device: str | None) -> float | None:
        """Return the seconds of one image outside its steps, or ``None`` while nothing is known of the model."""
        pixels = _pixels(request)
        rates = self.rates(request.model, len(request.init_images), pixels, device)
        return None if rates is None else pixels * rates.rest

    def rates(self, model: str, init_images: int, pixels: int, device: str | None) -> Rates | None:
        """Return what a pixel costs in images of a size, or ``None`` while nothing is known of the model."""
        nearest = self._nearest(model, init_images, pixels, device)
        if nearest is None:
            return None
        measured_pixels, measured = nearest
        return Rates(
            step=(measured.step.value or 0.0) / measured_pixels, rest=(measured.rest.value or 0.0) / measured_pixels
        )

    def _of(self, request: ResolvedRequest, device: str | None) -> _Measured:
        sizes = self._measured.setdefault((device, request.model, len(request.init_images)), {})
        return sizes.setdefault(_pixels(request), _Measured())

    def _nearest(self, model: str, count: int, wanted: int, device: str | None) -> tuple[int, _Measured] | None:
        others = sorted((abs(other - count), other) for *key, other in self._measured if key == [device, model])
        for _, other in others:
            known = {
                pixels: measured
                for pixels, measured in self._measured[device, model, other].items()
                if measured.step.value is not None
            }
            if known:
                break
        else:
            return None
        pixels = min(known, key=lambda seen: max(seen, wanted) / min(seen, wanted))
        return pixels, known[pixels]


def _pixels(request: ResolvedRequest) -> int:
    width, height = request.size
    return width * height
