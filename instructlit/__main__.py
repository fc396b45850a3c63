"""`python -m instructlit` is the `instructlit` command."""

import sys

from instructlit.cli import main

sys.exit(main())
