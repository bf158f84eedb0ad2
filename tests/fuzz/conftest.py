"""The tests import the fuzzer, which is a program of several files."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
