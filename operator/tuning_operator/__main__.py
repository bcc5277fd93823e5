"""`python -m tuning_operator`."""

import sys

from tuning_operator.main import main

sys.exit(main())
