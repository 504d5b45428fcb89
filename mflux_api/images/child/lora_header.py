"""A LoRA's file that a client uploaded, checked by its header with the rules of the engine's reader."""

import os
import stat

from mflux_api.catalog.safetensors_rules import PREFIX_BYTES, SafetensorsRuleError, header_bytes, read_header
from mflux_api.images.child import protocol as p


def check_lora(order: p.CheckLora) -> p.LoraChecked:
    """Check that the header can be read and that the tensors fill the file to its last byte.

    Raises:
        InvalidParameter: they do not, or it breaks another rule.
    """
    try:
        # A pipe without a writer would keep a plain open waiting for ever.
        descriptor = os.open(order.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise p.lora_error("it is not a file")
            length = header_bytes(file.read(PREFIX_BYTES), status.st_size)
            read_header(file.read(length), status.st_size)
    except SafetensorsRuleError as error:
        raise p.lora_error(str(error)) from None
    except (OSError, ValueError):
        raise p.lora_error("it cannot be read; send it again") from None
    return p.LoraChecked(size=status.st_size)
