"""Seals of checkpoints: whatever a damaged one holds is a fault, never another error."""

import json

import pytest

pytest.importorskip("transformers")

from pycooldown.huggingface.checkpoints import SEAL, find_fault, seal


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(range(200)))
    (tmp_path / "trainer_state.json").write_text('{"global_step": 3}')
    seal(tmp_path, {"step": 3})
    return tmp_path


def test_every_flipped_bit_is_found_or_changes_nothing(checkpoint):
    for name in (SEAL, "model.safetensors", "trainer_state.json"):
        path = checkpoint / name
        content = path.read_bytes()
        for bit in range(8 * len(content)):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            if find_fault(checkpoint) is None:
                assert name == SEAL
                assert json.loads(damaged)["sampler"] == {"step": 3}
        path.write_bytes(content)
    assert find_fault(checkpoint) is None


@pytest.mark.parametrize(
    "content", ["[]", "null", "[" * 100_000, '{"sampler": 1}', '{"sampler": 1, "files": {"a": []}}']
)
def test_what_is_no_seal_is_a_fault(checkpoint, content):
    (checkpoint / SEAL).write_text(content)
    assert f"its {SEAL} cannot be read" in find_fault(checkpoint).text


def test_seals_of_version_0_1_know_sizes_alone(checkpoint):
    """JSON files are parsed: a damaged ``trainer_state.json`` would stop the run that resumes from it."""
    content = json.loads((checkpoint / SEAL).read_text())
    sizes = {name: entry["size"] for name, entry in content["files"].items()}
    (checkpoint / SEAL).write_text(json.dumps({"sampler": content["sampler"], "files": sizes}))
    assert find_fault(checkpoint) is None
    (checkpoint / "trainer_state.json").write_text('["global_step": 3}')
    fault = find_fault(checkpoint)
    assert "its trainer_state.json cannot be read" in fault.text
    assert fault.damaged
