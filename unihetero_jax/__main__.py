"""``python -m unihetero_jax`` is the command ``unihetero``."""

import sys

from unihetero_jax.cli import main

sys.exit(main())
