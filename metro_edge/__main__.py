"""`python -m metro_edge COMMAND` is `metro-edge COMMAND`."""

import sys

from metro_edge.cli import main

if __name__ == "__main__":
    sys.exit(main())
