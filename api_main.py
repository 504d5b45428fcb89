"""Start the server from a checkout: ``python api_main.py [--host H] [--port P]``."""

import sys

from mflux_api.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
