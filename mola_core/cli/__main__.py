"""`python -m mola_core.cli`: the command line by the interpreter that runs already."""

import sys

from mola_core.cli import main

sys.exit(main())
