"""A damaged checkpoint or seal is reported as a fault, whatever it holds, and raises no other error."""

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
def test_a_seal_that_is_not_one_is_a_fault(checkpoint, content):
    (checkpoint / SEAL).write_text(content)
    assert f"its {SEAL} cannot be read" in find_fault(checkpoint).text


def test_seals_of_version_0_1_know_sizes_alone(checkpoint):
    """Seals of version 0.1 have sizes but no hashes, so JSON files are parsed, since resuming reads them."""
    content = json.loads((checkpoint / SEAL).read_text())
    sizes = {name: entry["size"] for name, entry in content["files"].items()}
    (checkpoint / SEAL).write_text(json.dumps({"sampler": content["sampler"], "files": sizes}))
    assert find_fault(checkpoint) is None
    (checkpoint / "trainer_state.json").write_text('["global_step": 3}')
    fault = find_fault(checkpoint)
    assert "its trainer_state.json cannot be read" in fault.text
    assert fault.damaged
