"""The interface between mixing methods and recipes: options, their schedule, and hooks for planning and training.

Your own methods are registered in the same way as those of the package:

    @register("sqrt")
    class SqrtOptions(MethodOptions):
        def schedule(self, sizes, num_steps, batch_size):
            return schedules.constant(Mixture.temperature_sampling(sizes, 2.0))

An installed package can name such a class as an entry point of the group "pycooldown.methods", under the method's name.
Then the command line finds it.
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
    """A function that trains a recipe with another method, and optionally another model, in another folder."""

    def __call__(self, method: MethodOptions, folder: Path, model: AnyModel | None = None, /) -> Run:
        """Return the run. A finished run is not trained again."""


Kind = TypeVar("Kind", bound="type[MethodOptions]")


class MethodOptions(ABC):
    """The options of a mixing method. Its fields are the keys of a recipe's section ``mixture``.

    Only `schedule` must be implemented. The other methods are hooks with defaults for methods that need nothing else.

    Attributes:
        name: The method's name in recipes, set by `register`.
    """

    name: ClassVar[str]

    @abstractmethod
    def schedule(self, sizes: Mapping[str, int], num_steps: int, batch_size: int) -> Schedule:
        """Return the schedule over ``num_steps`` steps of ``batch_size`` samples for domains of these sizes."""

    def with_allocation(self, allocation: AllocationName) -> MethodOptions:
        """Return the method, adapted to batches with this allocation; see `DomainBatchSampler`."""
        return self

    def held_out(self, size: int) -> int:
        """Return how many samples of a domain of this size are kept out of training."""
        return 0

    def probe(self, held_out: Mapping[str, Samples], collate: Collator, seed: int) -> Probe | None:
        """Return a probe that measures the model on the held-out samples of each domain, or None."""
        return None

    def reference_run(self) -> Path | None:
        """Return the folder of the finished run whose model is the reference for excess losses, or None."""
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
        """Return what the schedule has learned by the end of a run: vectors over the domains, by name."""
        return None


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def register(name: str) -> Callable[[Kind], Kind]:
    """Make a subclass of `MethodOptions` a frozen dataclass and register its name for recipes.

    Raises:
        ValueError: If another class has that name.
    """

    def decorate(kind: Kind) -> Kind:
        taken = _REGISTERED.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (kind.__module__, kind.__qualname__):
            raise ValueError(f"method {name!r} already is {taken.__module__}.{taken.__qualname__}; choose another name")
        made: Kind = dataclass(frozen=True, config=CONFIG)(kind)  # type: ignore[assignment]
        made.name = name
        _REGISTERED[name] = made
        return made

    return decorate


def method_names() -> list[str]:
    """Return the names that recipes may use, including methods of installed packages."""
    return sorted({*_REGISTERED, *(entry.name for entry in entry_points(group=GROUP))})


def find_method(name: str) -> type[MethodOptions] | None:
    """Return a method's options class, loading the package that defines it; ``None`` if there is none.

    Raises:
        ValueError: If an entry point's class is not registered under the entry point's name.
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
        for base in kind.__mro__:  # pydantic describes only fields of the class itself
            for key, field in getattr(base, "__pydantic_fields__", {}).items():
                if field.description:
                    schema["properties"][key].setdefault("description", field.description)
        schema["properties"] = {"method": {"const": name}, **schema.get("properties", {})}
        schema["required"] = ["method", *schema.get("required", [])]
        schemas.append(schema)
    return schemas
