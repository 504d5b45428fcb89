"""What the service and a decoder's child say to each other, in the frames of :mod:`mflux_api.ipc.frames`.

An order is a class derived from :class:`Order`, named in ``ORDER_TYPES``; the child answers it with one of
``RESULT_TYPES``. Texts and files travel as the order's blobs.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import attrs
from msgspec import Meta

from mflux_api.errors import InvalidParameter, ServiceError

TOO_MUCH_MEMORY = "takes too much memory to decode"

Natural = Annotated[int, Meta(ge=0)]
Size = tuple[Natural, Natural]
"""Width and height in pixels."""


@attrs.frozen(kw_only=True)
class Order:
    """One piece of work for the child."""

    def refuse(self, index: int, problem: str) -> ServiceError:
        """Return the error for a part of the order that the child was killed over, or died of.

        Args:
            index: the part it was at work on, as :class:`Working` said.
            problem: what went wrong, as the end of a sentence that begins with what it happened to.
        """
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class _ImagesOrder(Order):
    field: str = "init_images"
    """What the client calls the images, for errors."""
    first: Natural = 0
    """Place of the first image in the client's list."""

    def refuse(self, index: int, problem: str) -> ServiceError:
        place = self.first + index
        return InvalidParameter.for_field(
            self.field,
            f"is invalid: image {place + 1} {problem}; save it again as a plain PNG or JPEG",
            limit="a plain PNG or JPEG",
            index=place,
        )


@attrs.frozen(kw_only=True)
class CheckImages(_ImagesOrder):
    """Decode images and keep none. Blobs: each image as base64 or a data URL."""

    reference: bool = True
    """Whether they are for editing, which needs a least size."""


# --- answers ---


@attrs.frozen(kw_only=True)
class Ready:
    """The child takes orders."""


@attrs.frozen(kw_only=True)
class Working:
    """The child begins with a part of its order; the limits count anew for each."""

    index: Natural


@attrs.frozen(kw_only=True)
class OrderFailed:
    """The order cannot be done; the error is the client's."""

    code: str
    message: str
    details: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class OutOfBounds:
    """The order needs more memory than the child may take, or met a defect of the child."""

    index: Natural
    problem: str


@attrs.frozen(kw_only=True)
class ImagesChecked:
    """All images can be used."""

    sizes: tuple[Size, ...]


Result = ImagesChecked
"""What an order that was done gives."""


def _by_name(*kinds: type[Any]) -> Mapping[str, type[Any]]:
    return {kind.__name__: kind for kind in kinds}


ORDER_TYPES = _by_name(CheckImages)
"""Tag → class of every frame that the child takes."""
RESULT_TYPES = _by_name(Ready, Working, OrderFailed, OutOfBounds, ImagesChecked)
"""Tag → class of every frame that it sends."""
