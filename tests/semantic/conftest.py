"""Puts the fast BLAS in place before a test module imports mflux, and with it MLX."""

import os

# MLX's CPU compiler would call the system's C++ compiler: 20 s for the first graph.
os.environ["MLX_DISABLE_COMPILE"] = "1"

from mflux_api.engine import blas

blas.preload()
