"""``python -m mflux_api``."""

import sys

from mflux_api.cli import main

sys.exit(main())
