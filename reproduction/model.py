"""A small Transformer that reads a tag, an English sentence and its translation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

MAX_LENGTH = 48

Pair = tuple[npt.NDArray[np.int64], int]  # tokens, and the number of them before the translation


class DecoderConfig(PretrainedConfig):  # type: ignore[misc]
    """The shape of a `Decoder`."""

    model_type = "reproduction_decoder"

    def __init__(self, vocab_size: int = 8, width: int = 64, layers: int = 2, heads: int = 4, **kwargs: Any) -> None:
        self.vocab_size = vocab_size
        self.width = width
        self.layers = layers
        self.heads = heads
        super().__init__(**{"tie_word_embeddings": True, **kwargs})


class Decoder(PreTrainedModel):  # type: ignore[misc]
    """A decoder-only Transformer: layer norm first, learned positions, tied embeddings."""

    config_class = DecoderConfig
    _tied_weights_keys = {"logits.weight": "tokens.weight"}  # noqa: RUF012  # the name that transformers reads

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        width, layers = config.width, config.layers
        self.heads = config.heads
        self.tokens = torch.nn.Embedding(config.vocab_size, width)
        self.positions = torch.nn.Embedding(MAX_LENGTH, width)
        self.attention = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.LayerNorm(width), torch.nn.Linear(width, 3 * width)) for _ in range(layers)
        )
        self.output = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(layers))
        self.feed_forward = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.LayerNorm(width),
                torch.nn.Linear(width, 4 * width),
                torch.nn.GELU(),
                torch.nn.Linear(4 * width, width),
            )
            for _ in range(layers)
        )
        self.norm = torch.nn.LayerNorm(width)
        for embedding in (self.tokens, self.positions):
            torch.nn.init.normal_(embedding.weight, std=0.02)
        self.logits = torch.nn.Linear(width, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Keep the initialization of ``__init__``."""

    def get_input_embeddings(self) -> torch.nn.Embedding:
        """Return the embedding of tokens."""
        return self.tokens

    def get_output_embeddings(self) -> torch.nn.Linear:
        """Return the layer that makes logits."""
        return self.logits

    def hidden_states(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states (N, T, width) of tokens (N, T)."""
        x = self.tokens(input_ids) + self.positions.weight[: input_ids.shape[1]]
        for attention, output, feed_forward in zip(self.attention, self.output, self.feed_forward, strict=True):
            q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in attention(x).chunk(3, dim=2))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + output(mixed.transpose(1, 2).flatten(2))
            x = x + feed_forward(x)
        return torch.as_tensor(self.norm(x))

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> CausalLMOutput:
        """Return logits (N, T, V) and, with labels (N, T), the mean loss of the next tokens that are not -100."""
        logits = self.logits(self.hidden_states(input_ids))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)


def collate(samples: list[Pair]) -> dict[str, torch.Tensor]:
    """Make ``input_ids`` and ``labels`` (N, T); only the translation has labels.

    Padding is on the right, where causal attention does not see it.
    """
    length = max(len(tokens) for tokens, _ in samples)
    rows = torch.zeros(len(samples), length, dtype=torch.int64)
    labels = torch.full((len(samples), length), -100, dtype=torch.int64)
    for row, label, (tokens, prefix) in zip(rows, labels, samples, strict=True):
        row[: len(tokens)] = torch.from_numpy(tokens)
        label[prefix : len(tokens)] = row[prefix : len(tokens)]
    return {"input_ids": rows, "labels": labels}


def sample_losses(model: Decoder, samples: list[Pair]) -> torch.Tensor:
    """Return the mean loss of each sample over its translation, (N,)."""
    batch = collate(samples)
    labels = batch["labels"][:, 1:]
    chosen = labels >= 0
    logits = model.logits(model.hidden_states(batch["input_ids"][:, :-1])[chosen])
    losses = F.cross_entropy(logits, labels[chosen], reduction="none")
    return torch.zeros(len(samples)).index_add(0, chosen.nonzero()[:, 0], losses) / chosen.sum(1)
