"""Lets the tests of this folder import the helper servers beside them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
