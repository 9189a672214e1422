"""Train a SentencePiece model."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from pycooldown._extras import require

UNK, BOS, EOS, PAD = range(4)  # ids


def train_sentencepiece(
    sentences: Iterable[str],
    vocabulary_size: int,
    *,
    character_coverage: float = 0.9995,
    control_symbols: Sequence[str] = (),
) -> bytes:
    """Train a byte-pair model with byte fallback over unnormalised text, so that every string can be decoded again.

    Args:
        sentences: The sample.
        vocabulary_size: Number of token ids, with 4 special ones (unknown, BOS, EOS, padding: 0 to 3) and 256 bytes.
        character_coverage: Share of its characters with their own piece; the rest are spelt in bytes.
        control_symbols: Further special tokens.

    Returns:
        The model file.

    Raises:
        ValueError: If SentencePiece cannot train with these options.
    """
    require("prepare", "sentencepiece")
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",  # uses only counts, no floating-point sums that machines may round differently
            vocab_size=vocabulary_size,
            character_coverage=character_coverage,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            control_symbols=list(control_symbols),
            unk_id=UNK,
            bos_id=BOS,
            eos_id=EOS,
            pad_id=PAD,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"SentencePiece cannot train vocabulary_size={vocabulary_size} with "
            f"character_coverage={character_coverage} on this text: {error}"
        ) from error
    return model.getvalue()
