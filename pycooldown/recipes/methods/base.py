"""What a mixing method is to a recipe: options, the schedule they make, and hooks into planning and training.

Methods of one's own are registered in the same way as those of the package:

    @register("sqrt")
    class SqrtOptions(MethodOptions):
        def schedule(self, sizes, num_steps, batch_size):
            return schedules.constant(Mixture.temperature_sampling(sizes, 2.0))

An installed package names such a class as an entry point of the group "pycooldown.methods", under the method's name;
the command line finds it there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError
from typing_extensions import dataclass_transform

from pycooldown.recipes.fields import CONFIG
from pycooldown.recipes.history import Run
from pycooldown.recipes.model_section import AnyModel
from pycooldown.sampling.sampler import AllocationName
from pycooldown.schedules import Schedule

if TYPE_CHECKING:
    from pycooldown.huggingface.batches import Collator, Samples
    from pycooldown.huggingface.probe import Probe

GROUP = "pycooldown.methods"

_REGISTERED: dict[str, type[MethodOptions]] = {}


class TrainStage(Protocol):
    """Trains a recipe with another method, and with another model if one is given, in another folder."""

    def __call__(self, method: MethodOptions, folder: Path, model: AnyModel | None = None, /) -> Run:
        """Return the run, which is not trained again if it is finished."""


Kind = TypeVar("Kind", bound="type[MethodOptions]")


class MethodOptions(ABC):
    """The options of a mixing method: its fields are the keys that a recipe's section ``mixture`` may have.

    Only `schedule` must be written. The other methods are hooks; by default a method needs nothing of its run.

    Attributes:
        name: The method's name in recipes, set by `register`.
    """

    name: ClassVar[str]

    @abstractmethod
    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return the schedule over ``num_steps`` steps of ``batch_size`` samples for domains of these sizes."""

    def with_allocation(self, allocation: AllocationName) -> MethodOptions:
        """Return the method for batches that are allocated to domains in this way; see `DomainBatchSampler`."""
        return self

    def held_out(self, size: int) -> int:
        """Return how many samples of a domain of this size are kept out of training."""
        return 0

    def probe(self, held_out: Mapping[str, Samples], collate: Collator, seed: int) -> Probe | None:
        """Return what measures the model on the samples that `held_out` keeps, by domain."""
        return None

    def reference_run(self) -> Path | None:
        """Return the folder of the finished run whose model is the reference for excess losses."""
        return None

    def callbacks(self, num_steps: int) -> list[Any]:
        """Return callbacks for Trainer (`transformers.TrainerCallback`)."""
        return []

    def run_stages(self, output: Path, train: TrainStage) -> MethodOptions:
        """Train the runs that precede the recipe's own, and return the method of the last run.

        Args:
            output: Folder of the last run.
            train: Trains the recipe with another method in another folder, unless that run is finished already.
        """
        return self

    def learned(self, schedule: Any) -> dict[str, dict[str, float]] | None:
        """Return what the schedule has learned at the end of a run, vectors over the domains by name."""
        return None


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def register(name: str) -> Callable[[Kind], Kind]:
    """Make a subclass of `MethodOptions` a frozen dataclass and let recipes name it.

    Raises:
        ValueError: If another class has that name.
    """

    def decorate(kind: Kind) -> Kind:
        taken = _REGISTERED.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (kind.__module__, kind.__qualname__):
            raise ValueError(f"method {name!r} is {taken.__module__}.{taken.__qualname__} already; choose another name")
        made: Kind = dataclass(frozen=True, config=CONFIG)(kind)  # type: ignore[assignment]
        made.name = name
        _REGISTERED[name] = made
        return made

    return decorate


def method_names() -> list[str]:
    """Return the names that recipes may use, those of installed packages included."""
    return sorted({*_REGISTERED, *(entry.name for entry in entry_points(group=GROUP))})


def find_method(name: str) -> type[MethodOptions] | None:
    """Return a method's options class, loading the package that brings it; ``None`` if there is none.

    Raises:
        ValueError: If an entry point does not lead to a class that is registered under its name.
    """
    if name not in _REGISTERED:
        for entry in entry_points(group=GROUP, name=name):
            loaded = entry.load()
            if _REGISTERED.get(name) is not loaded:
                raise ValueError(
                    f"entry point {name!r} = {entry.value!r} of group {GROUP!r} is not registered under that name; "
                    f"decorate the class with @register({name!r})"
                )
    return _REGISTERED.get(name)


def read_method(value: Any) -> MethodOptions:
    """Return the options in a recipe's section ``mixture``: a mapping with ``method`` and the method's keys.

    Raises:
        pydantic_core.PydanticCustomError: If there is no such method.
        pydantic.ValidationError: For keys and values that the method does not accept.
    """
    if isinstance(value, MethodOptions):
        return value
    name = value.get("method") if isinstance(value, dict) else value
    kind = find_method(name) if isinstance(name, str) else None
    if not isinstance(value, dict) or kind is None:
        raise PydanticCustomError("unknown_method", "{names}", {"names": ", ".join(method_names())})
    read: MethodOptions = TypeAdapter(kind).validate_python({k: v for k, v in value.items() if k != "method"})
    return read


def method_schemas() -> list[dict[str, Any]]:
    """Return the JSON Schema of each method's section ``mixture``."""
    schemas = []
    for name in method_names():
        kind = find_method(name)
        assert kind is not None
        schema = TypeAdapter(kind).json_schema()
        for base in kind.__mro__:  # pydantic describes the fields of a class itself alone
            for key, field in getattr(base, "__pydantic_fields__", {}).items():
                if field.description:
                    schema["properties"][key].setdefault("description", field.description)
        schema["properties"] = {"method": {"const": name}, **schema.get("properties", {})}
        schema["required"] = ["method", *schema.get("required", [])]
        schemas.append(schema)
    return schemas
