"""``python -m framework.cli``: the same as ``kernelswap``."""

from . import main

raise SystemExit(main())
