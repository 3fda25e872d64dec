"""`python -m emc2dist`: the command, where the folder of scripts is not on PATH."""

import sys

from emc2dist.cli import main

sys.exit(main())
