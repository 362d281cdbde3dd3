"""Level 6: ``python -m zlaunch`` is ``zlaunch``."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
