"""Without transformers and accelerate there is no trainer to test."""

import importlib.util

collect_ignore_glob = [] if all(map(importlib.util.find_spec, ("transformers", "accelerate"))) else ["*.py"]
