"""`python -m maisi` is `maisi`."""

import sys

from maisi.cli import main

sys.exit(main())
