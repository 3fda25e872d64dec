"""`python -m emc2dist.cli`."""

import sys

from emc2dist.cli import main

sys.exit(main())
