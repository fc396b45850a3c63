"""A scalar for every token: the reward model and the value model.

Differs from transformers' sequence classification, whose module and weights it uses: the head runs in float32 whatever
the precision, there is a value at every position, the last one is found by the mask and not by the pad id, and a shift
is added.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from instructlit.errors import UserError
from instructlit.models.adapters import unwrapped
from instructlit.models.branches import Branches
from instructlit.models.last_block import only_at
from instructlit.models.packed import Packed, pays, shows_what_it_sees, takes_positions
from instructlit.ops.masking import gather_last, last_only
from instructlit.ops.masking import position_ids as positions_of


class ScalarHead(nn.Linear):
    """hidden (B, T, d) -> (B, T, 1) float32, computed in float32 under autocast and for 16-bit inputs too."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), self.weight.float())

    @classmethod
    def taking(cls, linear: nn.Linear) -> Self:
        """A head that holds the very weight of `linear`."""
        head = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        head.weight = linear.weight
        return head

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw new weights from N(0, 1 / (d + 1)).

        Source: Stiennon et al. 2020, appendix B.1. The second number is the variance: the authors' code draws with
        standard deviation 1 / sqrt(d + 1) (Huang et al., "The N implementation details of RLHF with PPO").
        """
        std = (self.in_features + 1) ** -0.5
        self.weight.copy_(torch.empty_like(self.weight, dtype=torch.float32).normal_(0.0, std))


class ScalarModel(nn.Module):
    """A trunk with a scalar head and a shift.

    Args:
        backbone: a transformers sequence-classification model with one label, plain or wrapped by peft.
        shift: added to every value, so that a reward model's mean over demonstrations is 0 (InstructGPT, section 3.5).
    """

    shift: Tensor  # () float32

    def __init__(self, backbone: nn.Module, shift: float = 0.0):
        super().__init__()
        self.backbone = backbone
        hf: Any = self.hf
        if type(hf.score) is nn.Linear:
            hf.score = ScalarHead.taking(hf.score)
        self.register_buffer("shift", torch.tensor(float(shift), dtype=torch.float32))

    @property
    def hf(self) -> Any:
        """The transformers model, without peft's wrapper."""
        return unwrapped(self.backbone)

    @property
    def head(self) -> nn.Module:
        """The head, called with hidden states; under peft, its switch between the trained head and the first one."""
        return self.hf.score

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        group: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Values (B, T) float32 of the text up to and including each token, 0 where the mask is False; with a `group`
        the scores (B,) of `score_branches`.

        Only the last layer's hidden states are kept, and no cache of keys and values.

        Args:
            input_ids: (B, T) int64, padded on either side.
            attention_mask: (B, T), true on real tokens.
            position_ids: (B, T) int64; by default counted along the mask, so that padding changes no value.
            group: (B,) int64, of right-padded rows. They come through here, where sharded weights are gathered.
            wanted: (B, T) bool, where values are read; 0 elsewhere. By default at every real token.
        """
        mask = attention_mask.bool()
        if group is not None:
            return self._branch_scores(Branches.of(input_ids, mask, group))
        wanted = mask if wanted is None else mask & wanted
        if position_ids is None:
            if pays(self.backbone, mask):
                values = self._values(Packed.of(input_ids, mask).inputs, wanted[mask].nonzero()[:, 0])
                return values.new_zeros(mask.shape).masked_scatter(wanted, values)
            position_ids = positions_of(mask)
        inputs = {"input_ids": input_ids, "attention_mask": mask.long(), "position_ids": position_ids}
        values = self._values(inputs, wanted.flatten().nonzero()[:, 0])
        return values.new_zeros(mask.shape).masked_scatter(wanted, values)

    def score(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores (B,) float32: the value at each row's last real token, wherever its padding is."""
        mask = attention_mask.bool()
        return gather_last(self(input_ids, mask, wanted=last_only(mask)), mask)

    def score_branches(self, input_ids: Tensor, attention_mask: Tensor, group: Tensor) -> Tensor:
        """`score` of right-padded rows, each group's common beginning computed once (see `Branches`).

        Args:
            input_ids: (N, T) int64.
            attention_mask: (N, T) bool.
            group: (N,) int64, 0 .. P-1, ascending.

        Raises:
            UserError: the architecture or its attention cannot be told which token sees which.
        """
        if not self.can_branch:
            config = self.hf.config
            raise UserError(
                f"a {config.model_type} model with {config._attn_implementation} attention cannot share prompts",
                where="shared_prefix",
                expected="position ids and no ALiBi, and `sdpa` attention without a sliding window",
                fix="set shared_prefix: false",
            )
        return self(input_ids, attention_mask, group=group)

    def _branch_scores(self, branches: Branches) -> Tensor:
        if pays(self.backbone, branches.owner >= 0, branches=len(branches.last) + len(branches.owner)):
            whole, last = branches.packed()
            return self._values(whole.inputs, last)
        inputs = {"input_ids": branches.input_ids, "position_ids": branches.position_ids}
        places = branches.sequence * branches.input_ids.shape[1] + branches.last
        return self._values(inputs | {"attention_mask": branches.sees}, places)

    def _values(self, inputs: dict[str, Tensor], places: Tensor) -> Tensor:
        """(M,), of the tokens at `places` (M,), row after row."""
        trunk = self.hf.base_model
        if not takes_positions(self.backbone):
            inputs.pop("position_ids")
        with only_at(self.backbone, places, inputs["input_ids"].numel()):
            hidden = trunk(**{**inputs, "use_cache": False}).last_hidden_state
        return self.head(hidden.flatten(0, 1)[places]).squeeze(-1) + self.shift

    @property
    def can_branch(self) -> bool:
        """Whether the architecture and its attention can be told which token sees which."""
        return shows_what_it_sees(self.backbone)

    @torch.no_grad()
    def set_shift(self, shift: float | Tensor) -> None:
        """Replace the shift, in place."""
        self.shift.fill_(float(shift))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """As for any module, but the shift stays in float32 when the dtype changes."""
        exact = self.shift
        super()._apply(fn, recurse)
        self.shift = self.shift.float() if exact.is_meta else exact.to(self.shift.device)
        return self
