"""Every variant of the Triton kernels that can be launched, and its compilation for a GPU that is not present."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pycooldown.losses.backends import triton as launches
from pycooldown.losses.backends import triton_kernels, triton_stats

# Whether a launch notes that there is nothing to note of constants, as it does of pointers in every version.
NOTES_CONSTANTS = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7)
POINTERS = {
    "rows": {"target": "*i64", "scale": "*fp32", "loss": "*fp32", "lse": "*fp32", "correct": "*i8"},
    "slice": {"target": "*i64", "scale": "*fp32", "lse": "*fp32", "num_whole_classes": "*i64"},
    "scale": {"factor": "*fp32"},
    "stats": {"loss": "*fp32", "correct": "*i8", "target": "*i64", "domain_ids": "*i64"}
    | {"loss_sum": "*fp64", "counts": "*i64"},
}


class Variant(NamedTuple):
    """One compilation, and its allowed number of narrow accesses; None for any, if it cannot make wide ones."""

    kernel: str
    group: str
    dtype: str
    num_warps: int
    constants: tuple[tuple[str, int], ...]
    narrow_loads: int | None
    narrow_stores: int | None

    @property
    def together(self) -> int:
        """The number of wide loads that it must issue before it computes with any of them."""
        constants = dict(self.constants)
        return 0 if self.narrow_loads is None else constants.get("TILES") or constants.get("FLIGHT", 1)

    @property
    def stores_kept(self) -> int:
        """How many wide stores a variant has that keeps rows: each tile's, and a tile of zeros in each of two loops."""
        constants = dict(self.constants)
        return constants["TILES"] + 2 if constants["GRAD"] else 0

    def row(self, target: int) -> tuple[str, ...]:
        """Return its key in the table."""
        constants = " ".join(f"{name}={value}" for name, value in self.constants)
        return triton.__version__, f"sm_{target}", self.kernel, self.dtype, constants


def shapes(plain: bool, grad: bool, target: int) -> list[tuple[launches.Variant, int]]:
    """Return the choices of `choose_variant` on a target, and whether logits and gradient are aligned alike."""
    capability = target // 10, target % 10
    widths = (*launches.KEPT, 1 << 20)
    chosen = [launches.choose_variant(width, plain=plain, grad=grad, capability=capability) for width in widths]
    # Without a gradient there is no other alignment.
    return [*((shape, 1) for shape in dict.fromkeys(chosen)), *([(launches.UNLIKE, 0)] if grad else [])]


def variants(target: int) -> Iterator[Variant]:
    """Yield all variants that can be launched, except a soft cap alone, which needs no more than one with smoothing."""
    for dtype, options in itertools.product(("fp32", "bf16", "fp16"), ("", "smoothing", "soft cap")):
        flags = {"SMOOTHING": int(options != ""), "SOFTCAP": int(options == "soft cap")}
        plain = f" +{options}" if options else ""
        for grad in (0, 1):
            for shape, same in shapes(not options, bool(grad), target):
                # Loads: target, scale, the target's logit, the edges. Stores: loss, lse and whether correct, with
                # and without exponentials; the edges with a gradient, without weight and ignored.
                loads, stores = 4 if same else None, 9 if grad else None
                group = "rows unlike" if not same else "rows kept" if shape.TILES else "rows read twice"
                group += plain if grad else f", loss{plain}"
                constants = flags | {"GRAD": grad, "SAME_ALIGNMENT": same} | shape._asdict()
                yield Variant("rows", group, dtype, shape.LANES // 32, tuple(constants.items()), loads, stores)
        for lanes, same in itertools.product(sorted({shape.LANES for shape in launches.KEPT.values()}), (0, 1)):
            # Loads: target, scale, the log-sum-exp, the number of classes, the edges. Stores: the edges, twice.
            constants = tuple((flags | {"SAME_ALIGNMENT": same, "LANES": lanes}).items())
            group = f"slice{'' if same else ' unlike'}{plain}"
            yield Variant("slice", group, dtype, lanes // 32, constants, 4 + bool(options) if same else None, 2)
            if same and not options:
                yield Variant("scale", "scale", dtype, lanes // 32, (("LANES", lanes),), 2, 1)  # factor and edges
    for has_domains in (0, 1):
        yield Variant("stats", "stats", "fp32", launches.STATS_WARPS, (("HAS_DOMAINS", has_domains),), None, None)


def compile_variant(variant: Variant, target: int) -> Any:
    """Return the compiled kernel as any launch compiles it, if no argument is specialized by its value.

    A launch finds it in Triton's cache: what is compiled, and its key there, are the same.
    """
    kernel = getattr(triton_stats if variant.kernel == "stats" else triton_kernels, f"{variant.kernel}_kernel")
    integers = {"LANES", "TILES", "FLIGHT"}
    constants = {name: value if name in integers else bool(value) for name, value in variant.constants}
    signature, attributes = {}, {}
    for p in kernel.params:
        pointer = POINTERS[variant.kernel].get(p.name, f"*{variant.dtype}")
        signature[p.name] = "constexpr" if p.is_constexpr else p.annotation_type or pointer
        fixed = p.is_constexpr or p.do_not_specialize or p.do_not_specialize_on_alignment or "fp" in p.annotation_type
        if not fixed:
            raise SystemExit(f"triton_aot: {variant.kernel}_kernel would be specialized by the value of {p.name}")
        if p.do_not_specialize_on_alignment or (p.is_constexpr and NOTES_CONSTANTS):
            attributes[p.num,] = []  # what a launch notes of an argument that it has nothing to note of
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": variant.num_warps, "maxnreg": launches.MAX_REGISTERS}
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
