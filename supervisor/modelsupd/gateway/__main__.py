"""`python -I -m modelsupd.gateway` is the gateway's process."""

import sys

from modelsupd.gateway.main import main

if __name__ == "__main__":
    sys.exit(main())
