"""Keys and values of the rows that a decoder works on, one layer's at a time, and attention over them."""

import torch
from torch import Tensor
from torch.nn import functional as F


class KeyValueCache:
    """One layer's, allocated beforehand; places that no token has taken yet are 0.

    Args:
        slots: rows.
        heads: heads of keys and values.
        size: numbers of a head.
        dtype: of what is kept.
        device: where.
    """

    def __init__(self, slots: int, heads: int, size: int, dtype: torch.dtype, device: torch.device):
        # (slots, heads, places, size) each
        self.keys, self.values = (torch.zeros((slots, heads, 0, size), dtype=dtype, device=device) for _ in range(2))

    def write(self, slots: Tensor, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Keep keys and values (n, heads, size) at places (n,) of slots (n,)."""
        self.keys[slots, :, places] = keys
        self.values[slots, :, places] = values

    def grow(self, more: int) -> None:
        """So many further places in every slot."""
        self.keys = F.pad(self.keys, (0, 0, 0, more))
        self.values = F.pad(self.values, (0, 0, 0, more))

    def keep(self, slots: Tensor) -> None:
        """Keep only these slots (n,)."""
        self.keys, self.values = self.keys.index_select(0, slots), self.values.index_select(0, slots)

    def attend(self, query: Tensor, bias: Tensor, scale: float) -> Tensor:
        """Attention of one query per slot and head, (slots, query heads, size).

        Args:
            query: (slots, query heads, size); the heads are a multiple of those of the keys, neighbours share one.
            bias: (slots * heads, 1, places): 0 where a place is filled, minus infinity elsewhere.
            scale: factor on the scores.
        """
        slots, heads = self.keys.shape[:2]
        query = query.reshape(slots * heads, -1, query.shape[-1])
        scores = torch.baddbmm(bias, query, self.keys.flatten(0, 1).mT, alpha=scale)
        found = torch.bmm(torch.softmax(scores, dim=-1), self.values.flatten(0, 1))
        return found.view(slots, -1, query.shape[-1])
