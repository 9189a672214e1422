"""A mixture for models and trainers of Hugging Face.

    from pycooldown.huggingface import MixtureTrainer         # Trainer, with batches and loss weights from a mixture
    from pycooldown.huggingface import MixtureTrainerMixin    # the same for other trainers, such as Seq2SeqTrainer
    from pycooldown.huggingface import fuse_loss              # a model's loss, weighted by domain, without logits

Names are imported on first use, so reading a recipe or a run does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pycooldown._extras import require

require("train", "torch", "transformers", "accelerate", "tensorboard", "yaml")

if TYPE_CHECKING:
    from pycooldown.huggingface.batches import PackedPairs, PackedText, WithDomains
    from pycooldown.huggingface.fused_forward import FusedLoss, LossOutput
    from pycooldown.huggingface.fused_loss import fuse_loss
    from pycooldown.huggingface.micro_batches import MicroBatches
    from pycooldown.huggingface.probe import Probe
    from pycooldown.huggingface.ranks import DataParallelRanks
    from pycooldown.huggingface.sft import MixtureSFTMixin
    from pycooldown.huggingface.statistics import DomainSums
    from pycooldown.huggingface.trainer import MixtureTrainer, MixtureTrainerMixin

_HOME = {
    "DataParallelRanks": "ranks",
    "DomainSums": "statistics",
    "FusedLoss": "fused_forward",
    "LossOutput": "fused_forward",
    "MicroBatches": "micro_batches",
    "MixtureSFTMixin": "sft",
    "MixtureTrainer": "trainer",
    "MixtureTrainerMixin": "trainer",
    "PackedPairs": "batches",
    "PackedText": "batches",
    "Probe": "probe",
    "WithDomains": "batches",
    "fuse_loss": "fused_loss",
}
__all__ = [
    "DataParallelRanks",
    "DomainSums",
    "FusedLoss",
    "LossOutput",
    "MicroBatches",
    "MixtureSFTMixin",
    "MixtureTrainer",
    "MixtureTrainerMixin",
    "PackedPairs",
    "PackedText",
    "Probe",
    "WithDomains",
    "fuse_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
