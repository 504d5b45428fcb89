"""A LoRA's file that a client uploaded, checked by its header with the rules of the engine's reader."""

import os

from mflux_api.catalog.safetensors_rules import SafetensorsRuleError, read_file
from mflux_api.images.child import protocol as p
from mflux_api.ipc.paths import path_of
from mflux_api.system.regular_files import NotRegularFile, open_regular


def check_lora(order: p.CheckLora) -> p.LoraChecked:
    """Check that the header can be read and that the tensors fill the file to its last byte.

    Raises:
        InvalidParameter: they do not, or it breaks another rule.
    """
    try:
        with open_regular(path_of(order.path)) as file:
            size = os.fstat(file.fileno()).st_size
            read_file(file, size)
    except SafetensorsRuleError as error:
        raise p.lora_error(str(error)) from None
    except NotRegularFile:
        raise p.lora_error("it is not a file") from None
    except OSError:
        raise p.lora_error("it cannot be read; send it again") from None
    return p.LoraChecked(size=size)
