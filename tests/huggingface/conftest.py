"""Without what `pycooldown.huggingface` needs there is no trainer to test."""

import importlib.util

NEEDED = ("torch", "transformers", "accelerate", "tensorboard", "yaml")
collect_ignore_glob = [] if all(map(importlib.util.find_spec, NEEDED)) else ["*.py"]
