"""Type checkers accept correct calls of the losses in strict mode and report each wrong line."""

import re
import shutil
import subprocess
import sys

import pytest

SNIPPET = """
import torch
from typing_extensions import assert_type

from pycooldown.losses import CrossEntropyLoss, DomainStats, cross_entropy, linear_cross_entropy

x, w, t = torch.randn(4, 9, requires_grad=True), torch.randn(5, 9), torch.zeros(4, dtype=torch.int64)
flag = bool(torch.rand(()) < 0.5)

loss = cross_entropy(x, t)
loss.backward()
assert_type(cross_entropy(x, t, return_stats=False, ignore_index=3), torch.Tensor)
assert_type(cross_entropy(x, t, None, return_stats=True, softcap=3.0), tuple[torch.Tensor, DomainStats])
assert_type(cross_entropy(x, t, return_stats=flag), torch.Tensor | tuple[torch.Tensor, DomainStats])
assert_type(linear_cross_entropy(x, w, t, linear_bias=None, chunk_size=2, ignore_index=None), torch.Tensor)
assert_type(linear_cross_entropy(x, w, t, return_stats=True), tuple[torch.Tensor, DomainStats])
CrossEntropyLoss(reduction="none", z_loss=1e-4, process_group=None)

cross_entropy(x, t, reduction="avg")  # wrong
cross_entropy(x, t, backend="cuda")  # wrong
cross_entropy(x, t, lable_smoothing=0.1)  # wrong
linear_cross_entropy(x, w, t, normalizer="tokens")  # wrong
cross_entropy(x, t, return_stats=True).backward()  # wrong
CrossEntropyLoss(reduction="avg")  # wrong
"""
# torch itself does not annotate Tensor.backward.
CHECKERS = {
    "mypy": ["mypy", "--strict", "--untyped-calls-exclude=torch", "--config-file="],
    "basedpyright": ["basedpyright", "--level=error", f"--pythonpath={sys.executable}"],
}


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
def test_types_of_calls(checker, tmp_path):
    if shutil.which(checker) is None:
        pytest.skip(f"{checker} is not installed")
    path = tmp_path / "snippet.py"
    path.write_text(SNIPPET)
    output = subprocess.run([*CHECKERS[checker], str(path)], capture_output=True, text=True).stdout
    errors = {int(line) for line in re.findall(r"snippet\.py:(\d+)\S* (?:- )?error", output)}
    wrong = {number for number, line in enumerate(SNIPPET.splitlines(), 1) if line.endswith("# wrong")}
    assert errors == wrong, output
