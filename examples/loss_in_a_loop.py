"""The loss alone, in a loop with its own data: weigh domains instead of resampling them.

python examples/loss_in_a_loop.py
"""

import torch
from torch.utils.data import DataLoader, TensorDataset

from pycooldown import Mixture
from pycooldown.losses import CrossEntropyLoss

SIZES = {"en": 400, "sw": 20}
VOCABULARY = 32


def main():
    """Train with weights by domain, and print each domain's own loss."""
    starts = torch.arange(sum(SIZES.values()))[:, None] * 7  # stands in for your data
    domain_ids = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(list(SIZES.values())))
    tokens = (starts + torch.arange(17) * (1 + 2 * domain_ids[:, None])) % VOCABULARY

    # Samples come in proportion to size, as from any shuffled loader. The weights are the ratio of target to sampling,
    # so the loss is that of a mixture at temperature 5.
    mixture = Mixture.scalarization(SIZES, tau=5.0)
    weights = torch.tensor(mixture.loss_weights, dtype=torch.float32)
    print("weights:", dict(zip(mixture.domains, mixture.loss_weights.round(3).tolist())))
    loss_fn = CrossEntropyLoss(domain_weights=weights, return_stats=True)  # otherwise the same as torch's

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(VOCABULARY, 32), torch.nn.Linear(32, VOCABULARY))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = DataLoader(TensorDataset(tokens, domain_ids), batch_size=32, shuffle=True)
    for epoch in range(3):
        sums, counts = torch.zeros(len(SIZES), dtype=torch.float64), torch.zeros(len(SIZES), dtype=torch.int64)
        for batch, ids in loader:
            logits = model(batch[:, :-1]).transpose(1, 2)  # (N, V, T), as torch's loss wants it
            loss, stats = loss_fn(logits, batch[:, 1:], domain_ids=ids)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sums += stats.loss_sum  # unweighted, and free: no second pass over the logits
            counts += stats.token_count
        print(f"epoch {epoch}:", dict(zip(SIZES, (sums / counts).tolist())))


if __name__ == "__main__":
    main()
