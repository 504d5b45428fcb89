"""What the decoder is asked: an order for a child, and what became of it."""

import attrs

from mflux_api.actors.mailbox import Ask
from mflux_api.images.child.client import Decoded
from mflux_api.images.child.protocol import Order
from mflux_api.ipc.child_process import Blob


@attrs.frozen(kw_only=True)
class Decode(Ask[Decoded]):
    """Have an order done in a child; it fails with the order's own error where it takes more than it may."""

    order: Order
    blobs: tuple[Blob, ...] = attrs.field(default=(), repr=False)
    """The bytes that belong to it; a text must be ASCII."""
    caller: str = ""
    """On whose behalf: callers take turns."""
    urgent: bool = False
    """For a job that runs: it goes before all others and is never turned away."""


DecoderMessage = Decode
