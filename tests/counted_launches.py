"""What torch launches, counted as it is dispatched."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PRODUCTS = ("mm", "addmm", "_grouped_mm", "grouped_mm_fallback")
_WHOLE = ("grouped_mm", "scaled_dot_product", "convolution")
_WITHOUT_KERNEL = ("mm", "addmm", "_unsafe_view", "lift_fresh", "detach", "detach_", "item", "is_nonzero", "_local_scalar_dense")


class CountedLaunches(TorchDispatchMode):
    """Counts the kernels that torch launches, and what they read and write, but for products, attention and what our kernels do
    (while ``is_ours``). products: rows and weights' shapes -> how often."""

    def __init__(self) -> None:
        super().__init__()
        self.is_ours, self.count, self.num_bytes = False, 0, 0
        self.products: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "dropout":  # its decomposition copies what the operator returns
            return args[0]
        is_whole = any(part in name for part in _WHOLE)
        if not self.is_ours and not is_whole:
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        found = func(*args, **kwargs)
        if not self.is_ours and name in _PRODUCTS:
            x, weight = [part for part in args if isinstance(part, torch.Tensor)][-2 if name in ("mm", "addmm") else 0 :][:2]
            self.products[(len(x), *weight.shape)] += 1
        if self.is_ours or func.is_view or is_whole or name in _WITHOUT_KERNEL or name.startswith(("empty", "new_empty")):
            return found
        self.count += 1
        reads, writes = (
            [part for part in tree_leaves(given) if isinstance(part, torch.Tensor)] for given in ((args, kwargs), found)
        )
        if name in ("embedding", "index", "index_select"):
            reads[0] = writes[0]
        if name in ("index_put_", "index_copy_"):
            reads, writes = reads[1:], reads[-1:]
        self.num_bytes += sum(part.nbytes for part in (*reads, *writes))
        return found
