"""The model table: pure data. What each alias is, where it comes from and which rules it follows."""

from mflux_api.catalog.entries import BUILT_IN
from mflux_api.catalog.model import Family, Model, Quantization, SizeSource
from mflux_api.catalog.names import is_flux1
from mflux_api.catalog.table import Catalog

__all__ = ["BUILT_IN", "Catalog", "Family", "Model", "Quantization", "SizeSource", "is_flux1"]
