"""The environment of all tests, set before anything is imported."""

import os
import shutil

from hypothesis import settings

# Processes that tests start must import the installed package, not the source tree that they happen to start in.
os.environ["PYTHONSAFEPATH"] = "1"
# Without a GPU, Triton's kernels run in its interpreter.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The same examples on every machine; `pytest --hypothesis-profile=default` looks for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")
