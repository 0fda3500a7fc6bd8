"""``python -m fedscale.cli``, where the script is not on PATH."""

import sys

from fedscale.cli import main

sys.exit(main())
