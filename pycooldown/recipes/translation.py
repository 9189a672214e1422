"""Translate validation pairs with a trained model, and score the translations with BLEU and chrF."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from pycooldown._extras import require
from pycooldown.data.manifest import Tokenizer
from pycooldown.huggingface.batches import PackedPairs, Samples, packed_ids
from pycooldown.recipes.schema import Decoding

require("train", "sacrebleu", "sentencepiece")

import sentencepiece  # noqa: E402
from sacrebleu.metrics import BLEU, CHRF  # noqa: E402

_BATCH = 64
# sacreBLEU's tokenization, by language; languages written without spaces need their own.
_WORDS = {"zh": "zh", "ja": "char", "th": "char", "km": "char", "lo": "char", "my": "char"}


@dataclass(frozen=True)
class Translation:
    """One validation pair in plain text, with its translation by the model."""

    domain: str
    source: str
    reference: str
    hypothesis: str


def translate(
    model: PreTrainedModel, datasets: Mapping[str, Samples], tokenizer: Tokenizer, max_length: int, decoding: Decoding
) -> list[Translation]:
    """Translate packed pairs by beam search.

    Args:
        model: An encoder-decoder.
        datasets: Pairs by domain.
        tokenizer: Turns ids back into text.
        max_length: Tokens at which sources are cut and hypotheses end; references are complete.
        decoding: Options of the search; its ``samples`` is not used.
    """
    text = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    collate = PackedPairs(max_length, tokenizer.pad_id)
    search = GenerationConfig(
        num_beams=decoding.beams,
        length_penalty=decoding.length_penalty,
        max_length=max_length,
        early_stopping=True,
        use_cache=True,
        decoder_start_token_id=tokenizer.bos_id,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )
    was_training = model.training
    model.eval()
    results = []
    for domain, dataset in datasets.items():
        pairs = [dataset[i] for i in range(len(dataset))]
        sources, references = (text.decode([packed_ids(p, side).tolist() for p in pairs]) for side in ("src", "tgt"))
        hypotheses = [""] * len(pairs)
        by_length = np.argsort([len(packed_ids(pair, "src")) for pair in pairs], kind="stable").tolist()
        for start in range(0, len(pairs), _BATCH):
            chosen = by_length[start : start + _BATCH]
            batch = collate([pairs[i] for i in chosen])
            with torch.no_grad():
                ids = model.generate(
                    batch["input_ids"].to(model.device),
                    attention_mask=batch["attention_mask"].to(model.device),
                    generation_config=search,
                )
            for i, hypothesis in zip(chosen, text.decode(ids.tolist()), strict=True):
                hypotheses[i] = hypothesis
        results += [Translation(domain, *texts) for texts in zip(sources, references, hypotheses, strict=True)]
    model.train(was_training)
    return results


def score(translations: Iterable[Translation]) -> dict[str, dict[str, float]]:
    """Return ``bleu`` and ``chrf`` (0 to 100) of each domain's translations, by domain.

    Corpus BLEU (Papineni et al., 2002) and chrF2 (Popović, 2015) are computed by sacreBLEU (Post, 2018) on plain text.
    Words are separated by its tokenization "13a", for Chinese by "zh", and into characters for languages without
    spaces. The language is taken from the domain's name.
    """
    by_domain: dict[str, list[Translation]] = {}
    for translation in translations:
        by_domain.setdefault(translation.domain, []).append(translation)
    return {domain: _scores(domain, some) for domain, some in by_domain.items()}


def _scores(domain: str, translations: Sequence[Translation]) -> dict[str, float]:
    hypotheses = [t.hypothesis for t in translations]
    references = [[t.reference for t in translations]]
    words: Any = _WORDS.get(domain.partition("-")[0], "13a")
    return {
        "bleu": BLEU(tokenize=words).corpus_score(hypotheses, references).score,
        "chrf": CHRF().corpus_score(hypotheses, references).score,
    }
