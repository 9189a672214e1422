"""Draws on a device: check that they have the same bits as on the CPU, and measure draws per second."""

from __future__ import annotations

import numpy as np
import torch
from common import DEVICE, ON_GPU, median_ms, parse

from pycooldown import AliasTable, _core


def main() -> None:
    """Compare, then time."""
    run, _ = parse(__doc__)
    count = 4096 if run.dry else 1 << 26
    for num_outcomes in (100, 10_000):
        table = AliasTable(1 / np.arange(1, num_outcomes + 1))
        expected = table.draw(4096, seed=7, offset=3)
        if not (ON_GPU and hasattr(_core, "DeviceAliasTable")):
            assert np.array_equal(_core.draw_as_device(table, 4096, seed=7, offset=3), expected)
            run.write(outcomes=num_outcomes, skipped="no GPU, or a build without CUDA; the host did what threads would")
            continue
        on_device = _core.DeviceAliasTable(table)
        out = torch.empty(count, dtype=torch.int32, device=DEVICE)
        on_device.draw(out.data_ptr(), 4096, seed=7, offset=3)
        assert np.array_equal(out[:4096].cpu().numpy(), expected)

        def draw(on_device: _core.DeviceAliasTable = on_device, out: torch.Tensor = out) -> None:
            stream = torch.cuda.current_stream().cuda_stream
            on_device.draw(out.data_ptr(), len(out), seed=7, offset=0, stream=stream)

        ms = median_ms({"": draw}, runs=20)[""]
        assert ms is not None
        run.write(
            outcomes=num_outcomes, ms=ms, billions_per_second=count / ms / 1e6, gb_per_second=4 * count / ms / 1e6
        )


if __name__ == "__main__":
    main()
