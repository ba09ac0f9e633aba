"""`python -m fgrpo_secure` is the command `fgrpo`."""

import sys

from fgrpo_secure.cli import main

if __name__ == "__main__":
    sys.exit(main())
