"""What to tell a client whose model or image does not fit in memory."""

from typing import Any

import attrs

from mflux_api.catalog import Catalog
from mflux_api.errors import OutOfMemory

_ADVICE = "Try using a quantized model or low_ram mode"


@attrs.frozen
class MemoryAdvice:
    """Makes ``OOM_ERROR`` with a suggestion for the model at hand."""

    catalog: Catalog

    def error(self, alias: str, *, low_ram: bool, reason: str = "", **details: Any) -> OutOfMemory:
        """Return the error for a job on that model.

        Args:
            alias: the model.
            low_ram: whether the job asked for it.
            reason: a clause that says what did not fit.
            details: what a program may want to know; sizes in GB.
        """
        suggestion = self.suggestion(alias, low_ram=low_ram)
        model = self.catalog.get(alias)
        # The API document's sentence names a quantized model, and upscalers have none.
        advice = suggestion if model is not None and model.upscales else _ADVICE
        message = f"Insufficient memory{': ' if reason else ''}{reason}. {advice}"
        return OutOfMemory(message, {"model": alias, **details, "suggestion": suggestion})

    def suggestion(self, alias: str, *, low_ram: bool) -> str:
        """Return what a client may do about it."""
        ways = []
        smaller = self._smaller(alias)
        if smaller is not None:
            ways.append(f"Use {smaller}")
        if not low_ram:
            ways.append("set low_ram=true")
        if not ways:
            ways.append("use a smaller image, or free memory on the machine")
        text = " or ".join(ways)
        return text[0].upper() + text[1:]

    def _smaller(self, alias: str) -> str | None:
        """Return the 4-bit model of the same base, or one of fewer bits than this one; ``None`` if there is none."""
        model = self.catalog.get(alias)
        if model is None:
            return None
        bits = model.bits or 16
        others = [
            (other.bits == 4, other.quantization == "stored", -other.bits, other.alias)
            for other in self.catalog
            if other.base == model.base
            and other.family == model.family
            and other.bits is not None
            and other.bits < bits
        ]
        return max(others)[-1] if others else None
