"""Any tree of plain values and tensors as JSON beside a flat dict of tensors, and back, exactly.

What JSON lacks is tagged: `{"$tuple": [...]}`, `{"$dict": [[key, value], ...]}` for keys that are
not plain strings, `{"$float": "nan"}`, and `{"$tensor": name}` for an entry of the flat dict.
"""

import math
from typing import Any

import torch

Tree = Any  # dict, list, tuple, int, float, bool, str, None or torch.Tensor, nested


def pack(tree: Tree, tensors: dict[str, torch.Tensor], name: str) -> Any:
    """The JSON form of `tree`; its tensors are added to `tensors` under names that begin as `name`.

    Raises TypeError, naming the place, for a value that is neither plain nor a tensor.
    """
    if isinstance(tree, torch.Tensor):
        unique = name if name not in tensors else f"{name}#{len(tensors)}"
        tensors[unique] = tree
        return {"$tensor": unique}
    if isinstance(tree, float) and not math.isfinite(tree):
        return {"$float": str(float(tree))}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if type(tree) in (list, tuple):
        parts = [pack(part, tensors, f"{name}/{i}") for i, part in enumerate(tree)]
        return parts if type(tree) is list else {"$tuple": parts}
    if isinstance(tree, dict):
        return _pack_dict(tree, tensors, name)
    raise TypeError(f"{name}: cannot store a {type(tree).__name__}; give plain values or tensors")


def _pack_dict(tree: dict, tensors: dict[str, torch.Tensor], name: str) -> dict[str, Any]:
    values = [pack(value, tensors, f"{name}/{key}") for key, value in tree.items()]
    if all(type(key) is str and not key.startswith("$") for key in tree):
        return dict(zip(tree, values, strict=True))
    keys = [pack(key, tensors, f"{name}/key") for key in tree]
    return {"$dict": [list(pair) for pair in zip(keys, values, strict=True)]}


def unpack(packed: Any, tensors: dict[str, torch.Tensor]) -> Tree:
    """The tree that `pack` was given. LookupError, TypeError or ValueError otherwise."""
    if isinstance(packed, list):
        return [unpack(part, tensors) for part in packed]
    if not isinstance(packed, dict):
        return packed
    match packed:
        case {"$tensor": name}:
            return tensors[name]
        case {"$float": text}:
            return float(text)
        case {"$tuple": parts}:
            return tuple(unpack(part, tensors) for part in parts)
        case {"$dict": pairs}:
            return {unpack(key, tensors): unpack(value, tensors) for key, value in pairs}
    return {key: unpack(value, tensors) for key, value in packed.items()}
