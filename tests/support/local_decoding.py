"""The decoder's work in this process, for tests about what is done and not about where."""

from mflux_api.actors.decoding import Decoding
from mflux_api.actors.messages import Decode
from mflux_api.images.child.client import Decoded
from mflux_api.images.child.worker import perform


async def do(message: Decode) -> Decoded:
    """Do an order here."""
    blobs = [blob.encode("ascii") if isinstance(blob, str) else blob for blob in message.blobs]
    result, made = perform(message.order, blobs, lambda index: None)
    return Decoded(result, tuple(made))


LOCAL = Decoding(do)
