"""`python -m devcluster.images`, the same as `python -m devcluster image`."""

import sys

from devcluster.images.command import main

sys.exit(main(sys.argv[1:]))
