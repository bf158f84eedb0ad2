"""``python -m kslottery_fast``, the same as the program ``kslottery``."""

from kslottery_fast.lab.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
