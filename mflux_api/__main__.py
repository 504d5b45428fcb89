"""``python -m mflux_api``."""

import sys

from mflux_api.cli.main import main

sys.exit(main())
