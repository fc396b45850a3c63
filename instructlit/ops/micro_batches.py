"""How a batch is cut into micro-batches: by rows, by tokens, or both."""

from collections.abc import Callable, Iterator, Sequence


def spans(
    count: int, rows: int | None, tokens: int | None, computed: Callable[[int, int], int]
) -> Iterator[tuple[int, int]]:
    """Neighbouring rows of a batch, (start, stop) each, as many as go into one forward pass; every row once, in order.

    The modules divide by the count of the whole optimiser step, so the split changes no gradient.

    Args:
        count: rows of the batch.
        rows: most rows together; None sets no bound.
        tokens: most tokens together; None sets no bound. A row that is longer goes alone.
        computed: the tokens of rows start to stop - 1 in one forward, as `computed_tokens` gives them.
    """
    start = 0
    while start < count:
        stop = start + 1
        while stop < count and stop - start < (rows or count):
            if tokens is not None and computed(start, stop + 1) > tokens:
                break
            stop += 1
        yield start, stop
        start = stop


def computed_tokens(*lengths: list[int], packed: bool) -> Callable[[int, int], int]:
    """What rows start to stop - 1 come to in one forward.

    Args:
        lengths: of each part of the rows, one list a part: rows of prompt and response are padded between the two.
        packed: whether padding is left out.
    """
    if packed:
        return lambda start, stop: sum(sum(part[start:stop]) for part in lengths)
    return lambda start, stop: (stop - start) * sum(max(part[start:stop]) for part in lengths)


def of_like_length(lengths: Sequence[int], rows: int | None, tokens: int | None) -> Iterator[list[int]]:
    """The indices of padded rows, the short ones first, as many together as go into one forward pass.

    Args:
        lengths: of each row.
        rows: as for `spans`.
        tokens: as for `spans`.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    computed = computed_tokens([lengths[i] for i in order], packed=False)
    for start, stop in spans(len(order), rows, tokens, computed):
        yield order[start:stop]
