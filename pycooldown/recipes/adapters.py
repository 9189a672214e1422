"""Adapters of peft on the weights of a folder, as described by a recipe's section ``peft``."""

from __future__ import annotations

import dataclasses
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

ADAPTER = "adapter_config.json"


def adapt(model: PreTrainedModel, section: dict[str, Any]) -> Any:
    """Return a model with a new adapter; only the adapter is trained.

    Args:
        model: The model.
        section: ``type`` and the options of peft's configuration class for that type.

    Raises:
        ImportError: If peft is not installed.
        ValueError: If the installed peft has no such type or option.
    """
    try:
        import peft
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as kinds
    except ImportError as error:
        raise ImportError(
            "the recipe's section peft needs the package peft; install it with: pip install peft"
        ) from error
    names = {str(getattr(kind, "value", kind)).lower(): cls for kind, cls in kinds.items()}
    kind = str(section["type"]).lower()
    if kind not in names:
        raise ValueError(
            f"peft.type is {section['type']!r}; expected one of {', '.join(sorted(names))}{_near(kind, names)}"
        )
    options = {name: value for name, value in section.items() if name != "type"}
    known = [field.name for field in dataclasses.fields(names[kind]) if field.init]
    for name in options:
        if name not in known:
            raise ValueError(f"peft.{name} is unknown to {names[kind].__name__}{_near(name, known)}")
    task = peft.TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else peft.TaskType.CAUSAL_LM
    try:
        config = names[kind](**{"task_type": task, **options})
        return peft.get_peft_model(model, config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"peft: {error}") from error


def load_adapted(folder: Path) -> Any:
    """Return the model of an adapter in a folder, together with the adapter."""
    import peft

    config = peft.PeftConfig.from_pretrained(str(folder))
    causal = config.task_type == peft.TaskType.CAUSAL_LM
    kind = peft.AutoPeftModelForCausalLM if causal else peft.AutoPeftModelForSeq2SeqLM
    return kind.from_pretrained(str(folder), local_files_only=True)


def _near(given: str, known: Any) -> str:
    close = get_close_matches(given, list(known), n=2)
    return f"; did you mean {' or '.join(close)}?" if close else ""
