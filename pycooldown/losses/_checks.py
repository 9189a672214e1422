"""Checks of the losses' arguments. Errors name the argument, the given value and the expected one.

Shapes, dtypes and devices are always checked. Values are checked only if this needs no synchronization with a device:
on the CPU, and not while torch traces or transforms the call.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
from torch.autograd import forward_ad

from ._options import Layer, Weights
from .backends.reference import has_autocast


class Layout(NamedTuple):
    """The shape of the logits.

    Attributes:
        shape: Shape of the rows, which is that of class targets.
        class_dim: Dimension of the logits that holds the classes.
        num_classes: Length of that dimension.
        dtype: Dtype of the logits.
    """

    shape: torch.Size
    class_dim: int
    num_classes: int
    dtype: torch.dtype


def logits_layout(input: torch.Tensor) -> Layout:
    """Return the layout of input; raise unless it is floating point and has a class dimension."""
    _check_whole("input", input)
    if not input.is_floating_point():
        raise TypeError(f"input must be floating point logits, got {input.dtype}")
    if input.dim() == 0:
        raise ValueError("input must have a class dimension: (V,), (N, V) or (N, V, ...), got a scalar")
    class_dim = min(input.dim() - 1, 1)
    shape = input.shape[:class_dim] + input.shape[class_dim + 1 :]
    return Layout(shape, class_dim, input.shape[class_dim], input.dtype)


def layer_layout(input: torch.Tensor, layer: Layer) -> Layout:
    """Return the layout of the layer's outputs; raise unless input (..., D) and the layer fit together."""
    tensors = (("input", input), ("linear_weight", layer.weight), ("linear_bias", layer.bias))
    for name, tensor in tensors:
        if tensor is not None:
            _check_whole(name, tensor)
    weight, bias = layer.weight, layer.bias
    if input.dim() == 0 or weight.dim() < 2 or input.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"input must be (..., D) and linear_weight (V, D) or (V, d1, ..., D), got {tuple(input.shape)} and "
            f"{tuple(weight.shape)}; a weight of torch.nn.Linear has this shape"
        )
    if weight.dim() > 2 and input.dim() == 1:
        raise ValueError(
            f"linear_weight {tuple(weight.shape)} of more than two dimensions needs an input (N, D), got "
            f"{tuple(input.shape)}; use input.unsqueeze(0)"
        )
    if bias is not None and bias.shape != weight.shape[:-1]:
        raise ValueError(
            f"linear_bias must be {tuple(weight.shape[:-1])}, one per row of linear_weight, got {tuple(bias.shape)}"
        )
    autocast = autocast_enabled(input.device)
    for name, tensor in tensors:
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
        if tensor.device != input.device:
            raise ValueError(f"{name} is on {tensor.device}, but input on {input.device}; move it there")
        if tensor.dtype != input.dtype and not autocast:
            raise TypeError(f"{name} is {tensor.dtype}, but input {input.dtype}; convert one, or use torch.autocast")
    batch = input.shape[:-1]
    dtype = input.dtype
    if autocast and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(input.device.type)
    return Layout(batch + weight.shape[1:-1], len(batch), len(weight), dtype)


def check_target(
    input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, ignore_index: int, layout: Layout
) -> None:
    """Raise unless target has the shape of the rows or of the logits, and weight is (V,)."""
    shape, class_dim, num_classes, _ = layout
    for name, tensor in (("target", target), ("weight", weight)):
        if tensor is not None and tensor.device != input.device:
            raise ValueError(f"{name} is on {tensor.device}, but input on {input.device}; move it there")
    same_dtype = weight is None or weight.dtype == input.dtype or autocast_enabled(input.device)
    if weight is not None and (weight.shape != (num_classes,) or not same_dtype):
        raise ValueError(
            f"weight must be ({num_classes},) {input.dtype}, one weight per class in the dtype of input, "
            f"got {tuple(weight.shape)} {weight.dtype}"
        )
    if target.is_floating_point():
        logits_shape = (*shape[:class_dim], num_classes, *shape[class_dim:])
        if target.shape != logits_shape:
            raise ValueError(
                f"target of class probabilities must have the shape of the logits {logits_shape}, "
                f"got {tuple(target.shape)}; class indices must be int64"
            )
        return
    if weight is not None and differentiated(weight):
        raise ValueError(
            "weight (of classes) is differentiated, but has a derivative only where target holds class probabilities, "
            "as in torch; pass weight.detach()"
        )
    if target.dtype not in (torch.int64, torch.uint8):
        raise TypeError(f"target must be int64 classes or floating point probabilities, got {target.dtype}")
    if target.shape != shape:
        raise ValueError(
            f"target must have shape {tuple(shape)} for input {tuple(input.shape)}, got {tuple(target.shape)}"
        )
    if values_are_known(target):
        wrong = ((target < 0) | (target >= num_classes)) & (target != ignore_index)
        if wrong.any():
            row = int(wrong.flatten().nonzero()[0])
            raise IndexError(
                f"target {int(target.flatten()[row])} at row {row} is not in [0, {num_classes}) and not "
                f"ignore_index={ignore_index}"
            )


def check_weights(input: torch.Tensor, shape: torch.Size, weights: Weights) -> None:
    """Raise unless the domains and weights fit rows of this shape, whose logits are input or computed from it."""
    ids, domains = weights.domain_ids, weights.domain_weights
    if (ids is None) != (domains is None):
        given, missing = ("domain_weights", "domain_ids") if ids is None else ("domain_ids", "domain_weights")
        hint = "" if ids is None else "; for statistics alone, pass domain_weights=torch.ones(num_domains)"
        raise ValueError(f"{given} needs {missing}{hint}")
    if ids is not None and domains is not None:
        if ids.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
            raise TypeError(f"domain_ids must be integers, got {ids.dtype}")
        _check_values("domain_weights", domains, input)
        if domains.dim() != 1 or len(domains) == 0:
            raise ValueError(f"domain_weights must be (K,), one weight per domain, got {tuple(domains.shape)}")
        _check_per_row("domain_ids", ids, input, shape)
        if values_are_known(ids) and ids.numel():
            low, high = (int(bound) for bound in torch.aminmax(ids))
            if low < 0 or high >= len(domains):
                rows = per_row(ids, shape).long()
                row = int(((rows < 0) | (rows >= len(domains))).nonzero()[0])
                raise IndexError(
                    f"domain_ids holds {int(rows[row])} at row {row}, but there are {len(domains)} domain_weights"
                )
    if weights.token_weights is not None:
        _check_values("token_weights", weights.token_weights, input)
        _check_per_row("token_weights", weights.token_weights, input, shape)


def check_inplace(input: torch.Tensor) -> None:
    """Raise unless the gradient may overwrite input."""
    owner = input if input._base is None else input._base
    if input.is_leaf or (owner.is_leaf and owner.requires_grad):
        raise ValueError("inplace=True would overwrite input, a leaf that requires grad; use inplace=False")
    reach = 0  # how far the dimensions of smaller steps go
    for step, size in sorted(zip(input.stride(), input.shape, strict=True)):
        if size > 1 and step <= reach:
            raise ValueError(
                f"inplace=True needs an input whose elements do not share memory, got {tuple(input.shape)} with "
                f"strides {input.stride()}; clone it"
            )
        reach += step * max(size - 1, 0)


def needs_reference(input: torch.Tensor, layer: Layer | None, target: torch.Tensor, weights: Weights) -> str | None:
    """Return the part of a call that only plain torch operations can compute, or None.

    Args:
        input: Logits, or the layer's input.
        layer: The layer whose outputs are the logits, if input is not the logits.
        target: Classes or class probabilities.
        weights: The weights of the call.
    """
    operands = (input,) if layer is None else (input, layer.weight, layer.bias)
    if layer is not None and layer.weight.dim() > 2:
        return "a linear_weight of more than two dimensions"
    if weights.weight is not None:
        return "class weights"
    if target.is_floating_point():
        return "class probabilities as target"
    for name, tensor in (("domain_weights", weights.domain_weights), ("token_weights", weights.token_weights)):
        if tensor is not None and differentiated(tensor):
            return f"{name} that are differentiated"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms"
    if any(tensor is not None and has_tangent(tensor) for tensor in operands):
        return "forward-mode derivatives"
    return None


def differentiated(tensor: torch.Tensor) -> bool:
    """Return whether the loss is to be differentiated with respect to this tensor."""
    return (tensor.requires_grad and torch.is_grad_enabled()) or has_tangent(tensor)


def has_tangent(tensor: torch.Tensor) -> bool:
    """Return whether a forward-mode derivative is taken along this tensor."""
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def values_are_known(tensor: torch.Tensor) -> bool:
    """Return whether a check may read the tensor: on the CPU, and not while torch traces or transforms the call."""
    return tensor.device.type == "cpu" and not is_traced(tensor) and not torch._C._are_functorch_transforms_active()


def is_traced(tensor: torch.Tensor) -> bool:
    """Return whether the tensor is a stand-in for later values: under torch.compile, make_fx, or fake."""
    if torch.compiler.is_compiling() or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return True
    proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")  # without its import, it traces nothing
    return proxies is not None and proxies.get_proxy_mode() is not None


def autocast_enabled(device: torch.device) -> bool:
    """Return whether autocast is on for a device."""
    return has_autocast(device.type) and torch.is_autocast_enabled(device.type)


def per_row(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return (N,) values of one per row, or one per entry of the leading dimension, of rows of this shape."""
    if tensor.shape == shape:
        return tensor.reshape(-1)
    return tensor.reshape(-1, *(1 for _ in shape[1:])).expand(shape).reshape(-1)


def _check_values(name: str, weights: torch.Tensor, input: torch.Tensor) -> None:
    if not weights.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {weights.dtype}; use {name}.float()")
    if weights.device != input.device:
        raise ValueError(f"{name} is on {weights.device}, but input on {input.device}; move it there")
    if values_are_known(weights) and weights.numel():
        low, high = (float(bound) for bound in torch.aminmax(weights.detach()))  # NaN if any is
        if not (low >= 0 and high < float("inf")):
            raise ValueError(f"{name} must be finite and not negative, got values from {low} to {high}")


def _check_per_row(name: str, tensor: torch.Tensor, input: torch.Tensor, shape: torch.Size) -> None:
    if tensor.device != input.device:
        raise ValueError(f"{name} is on {tensor.device}, but input on {input.device}; move it there")
    if tensor.shape not in (shape, shape[:1]):
        raise ValueError(
            f"{name} must have the shape of target {tuple(shape)} (per token) or {tuple(shape[:1])} (per sequence), "
            f"got {tuple(tensor.shape)}"
        )


def _check_whole(name: str, tensor: torch.Tensor) -> None:
    """Raise for a DTensor, because a rank may hold only a part of it."""
    distributed = sys.modules.get("torch.distributed.tensor")  # without its import, there is no DTensor
    if distributed is not None and isinstance(tensor, distributed.DTensor):
        raise ValueError(
            f"{name} is a DTensor with placements {tensor.placements}; pass {name}.to_local(), with "
            f"process_group=mesh.get_group() if it is split by classes, or the whole, {name}.full_tensor()"
        )
