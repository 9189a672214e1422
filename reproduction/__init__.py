"""Reproductions of published experiments, and the corpora they need. Not part of the installed package.

`python -m reproduction` starts in the source tree, which lacks the compiled core. So an installed pycooldown is
searched for first.
"""

import sys
from pathlib import Path

_root = str(Path(__file__).parents[1])
if any(str(Path(entry).resolve()) == _root for entry in sys.path):
    sys.path = [entry for entry in sys.path if str(Path(entry).resolve()) != _root] + [_root]
