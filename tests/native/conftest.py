"""The rows of tests/ops, which the calls of the native core are made of."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "ops"))  # ks_cases
