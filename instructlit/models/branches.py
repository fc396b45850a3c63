"""K completions of one prompt as branches of a single sequence: what they have in common is computed once.

The rows of a prompt begin alike. Their common beginning is stored once, followed by the rest of each row, one after
the other; a token sees the beginning, its own branch up to itself, and nothing of the other branches, and its position
is the one it would have in a row of its own. The scores are therefore those of K separate rows, up to rounding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from instructlit.models.packed import Packed
from instructlit.models.segments import ALONE


@dataclass
class Branches:
    """P sequences that hold N rows."""

    input_ids: Tensor  # (P, W) int64, right-padded with 0
    position_ids: Tensor  # (P, W) int64, 0 on padding
    owner: Tensor  # (P, W) int64: 0 where a token is common, n + 1 where it is row n's, -1 on padding
    sequence: Tensor  # (N,) int64: the sequence that holds the row
    last: Tensor  # (N,) int64: the column of the row's last token

    @classmethod
    def of(cls, input_ids: Tensor, attention_mask: Tensor, group: Tensor) -> "Branches":
        """Lay rows down as branches.

        Args:
            input_ids: (N, T) int64, right-padded.
            attention_mask: (N, T) bool.
            group: (N,) int64, 0 .. P-1, ascending: which rows share a sequence.
        """
        lengths = attention_mask.sum(dim=1)
        common = common_prefix(input_ids, attention_mask, group)
        rest = lengths - common[group]
        first = first_of_group(group)
        ends = rest.cumsum(0)  # over all rows; less what stood before the group it counts within the group
        starts = common[group] + ends - rest - (ends - rest)[first][group]
        width = int((starts + rest).max())

        columns = torch.arange(input_ids.shape[1], device=input_ids.device)
        own = attention_mask & (columns >= common[group, None])
        target = (starts - common[group])[:, None] + columns
        rows, places = own.nonzero(as_tuple=True)
        heads, head_places = (columns < common[:, None]).nonzero(as_tuple=True)
        shape = (len(first), width)
        ids, positions = (torch.zeros(shape, dtype=torch.int64, device=input_ids.device) for _ in range(2))
        branch = torch.full(shape, -1, dtype=torch.int64, device=input_ids.device)  # 0 common, n + 1 row n, -1 padding
        ids[heads, head_places] = input_ids[first[heads], head_places]
        positions[heads, head_places] = head_places
        branch[heads, head_places] = 0
        ids[group[rows], target[rows, places]] = input_ids[rows, places]
        positions[group[rows], target[rows, places]] = places
        branch[group[rows], target[rows, places]] = rows + 1
        return cls(ids, positions, branch, group, starts + rest - 1)

    @property
    def sees(self) -> Tensor:
        """(P, 1, W, W) bool: query i sees key j; padding sees itself alone."""
        width = self.owner.shape[1]
        before = torch.ones(width, width, dtype=torch.bool, device=self.owner.device).tril()
        keys, queries = self.owner[:, None, :], self.owner[:, :, None]
        sees = before & (keys >= 0) & ((keys == 0) | (keys == queries))
        return (sees | torch.eye(width, dtype=torch.bool, device=self.owner.device))[:, None]

    def packed(self) -> tuple[Packed, Tensor]:
        """The sequences without their padding one after the other, and the column (N,) of each row's last token."""
        real = self.owner >= 0
        common = (self.owner == 0).sum(dim=1)
        own = torch.bincount(self.owner[self.owner > 0] - 1, minlength=len(self.sequence))
        # Each sequence is its common beginning and then its rows, in the rows' order.
        heads = first_of_group(self.sequence) + torch.arange(len(common), device=common.device)
        rows = torch.arange(len(own), device=own.device) + self.sequence + 1
        lengths, parents = (common.new_full((len(common) + len(own),), ALONE) for _ in range(2))
        lengths[heads], lengths[rows] = common, own
        parents[rows] = heads[self.sequence]
        ids, positions = self.input_ids[real], self.position_ids[real]
        whole = Packed.of_segments(ids, positions, lengths, parents, self.input_ids.shape[1])
        return whole, lengths.cumsum(dim=0)[rows] - 1


def common_prefix(input_ids: Tensor, attention_mask: Tensor, group: Tensor) -> Tensor:
    """Tokens (P,) that all rows of a group begin with; every row keeps one token of its own at least."""
    first = first_of_group(group)[group]
    same = (input_ids == input_ids[first]) & attention_mask & attention_mask[first]
    with_first = same.long().cumprod(dim=1).sum(dim=1).minimum(attention_mask.sum(dim=1) - 1)
    groups = int(group[-1]) + 1
    largest = torch.full((groups,), input_ids.shape[1], dtype=torch.int64, device=group.device)
    return largest.scatter_reduce(0, group, with_first, "amin")


def first_of_group(group: Tensor) -> Tensor:
    """The first row (P,) of every group."""
    return torch.searchsorted(group, torch.arange(int(group[-1]) + 1, device=group.device))
