"""What the ops cost, beside the memory floor and other people's ways to the same numbers. See table.py."""

import time

STARTED = time.monotonic()  # of the process, or nearly: this comes before torch, which may take long to load
