"""What the ops cost, compared with the memory floor and with other libraries. See table.py."""

import time

STARTED = time.monotonic()  # nearly that of the process: this runs before torch is imported, which may take long
