"""What a test sees of the components of a loaded model: when each is read, and the bytes that they hold."""

import weakref
from collections.abc import Callable
from typing import Any

from mflux_api.catalog.files import COMPONENTS, ComponentName
from mflux_api.engine.weights.components import Components
from mflux_api.engine.weights.parameters import named_arrays
from mflux_api.storage.footprint import Footprint


def watch_reads(components: Components, name: ComponentName) -> "list[weakref.ref[Any]]":
    """Return weak references, one for each time that the component is read."""
    seen: list[weakref.ref[Any]] = []
    read = components._readers[name]

    def watch(done: Callable[[int], None]) -> Any:
        module = read(done)
        seen.append(weakref.ref(module))
        return module

    components._readers = {**components._readers, name: watch}
    return seen


def held_bytes(components: Components) -> Footprint:
    """Return the bytes of the arrays themselves."""
    sizes = [
        sum(
            array.nbytes
            for name, array in named_arrays(getattr(components, component))
            if not name.endswith("inv_freq")
        )
        for component in COMPONENTS
    ]
    return Footprint(whole=sum(sizes), component_offload=max(sizes))
