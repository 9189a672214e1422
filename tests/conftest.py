"""The environment of all tests, set before anything is imported."""

import os
import shutil

# Processes that tests start must import the installed package, not the source tree that they happen to start in.
os.environ["PYTHONSAFEPATH"] = "1"
# Without a GPU, Triton's kernels run in its interpreter.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
