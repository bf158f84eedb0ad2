"""``python -m kslottery_fast.lab.cli``, the same as the program ``kslottery``."""

from .main import main

raise SystemExit(main())
