"""``python -m hwwatch`` is the command `hwwatch`."""

import sys

from hwwatch.cli import main

if __name__ == "__main__":
    sys.exit(main())
