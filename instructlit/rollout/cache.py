"""Keys and values of the rows that a decoder works on, one layer's at a time, and attention over them."""

import torch
from torch import Tensor
from torch.nn import functional as F


class KeyValueCache:
    """One layer's, laid down beforehand; places that no token has taken yet are 0.

    Keys lie as a CPU multiplies them fastest by the few queries of a step: with tokens last in float32, with the head's
    numbers last in 16 bits.

    Args:
        slots: rows.
        heads: heads of keys and values.
        size: numbers of a head.
        dtype: of what is kept.
        device: where.
    """

    def __init__(self, slots: int, heads: int, size: int, dtype: torch.dtype, device: torch.device):
        self._tokens_last = dtype.itemsize > 2
        # (slots, heads, places, size) each; of the keys it is a view where the tokens lie last
        self._keys, self._values = (torch.zeros((slots, heads, 0, size), dtype=dtype, device=device) for _ in range(2))

    def write(self, slots: Tensor, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Keep keys and values (n, heads, size) at places (n,) of slots (n,)."""
        self._keys[slots, :, places] = keys
        self._values[slots, :, places] = values

    def grow(self, more: int) -> None:
        """So many further places in every slot."""
        pad = (0, 0, 0, more)
        self._keys = F.pad(self._keys.mT, (0, more)).mT if self._tokens_last else F.pad(self._keys, pad)
        self._values = F.pad(self._values, pad)

    def keep(self, slots: Tensor) -> None:
        """Go on with these slots (n,) alone."""
        lying = self._keys.mT if self._tokens_last else self._keys
        kept = lying.index_select(0, slots)
        self._keys = kept.mT if self._tokens_last else kept
        self._values = self._values.index_select(0, slots)

    def attend(self, query: Tensor, bias: Tensor, scale: float) -> Tensor:
        """What one query a slot and head finds, (slots, query heads, size).

        Args:
            query: (slots, query heads, size); the heads are a multiple of those of the keys, neighbours share one.
            bias: (slots, places): 0 where a place is filled, minus infinity elsewhere.
            scale: factor on the scores.
        """
        slots, heads = self._keys.shape[:2]
        query = query.reshape(slots * heads, -1, query.shape[-1])
        keys, values = self._keys.flatten(0, 1), self._values.flatten(0, 1)
        scores = torch.bmm(query, keys.mT) if self._tokens_last else torch.bmm(keys, query.mT).mT
        scores = torch.add(bias[:, None, None], scores.unflatten(0, (slots, heads)), alpha=scale)
        found = torch.bmm(torch.softmax(scores, dim=-1).flatten(0, 1), values)
        return found.view(slots, -1, query.shape[-1])
