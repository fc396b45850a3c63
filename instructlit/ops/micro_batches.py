"""How a batch is cut into micro-batches: by rows, by tokens, or both."""

from collections.abc import Callable, Iterator


def spans(
    count: int, rows: int | None, tokens: int | None, together: Callable[[int, int], int]
) -> Iterator[tuple[int, int]]:
    """Neighbouring rows of a batch, (start, stop) each, as many as go into one forward pass; every row once, in order.

    The modules divide by the count of the whole optimiser step, so that where the cuts fall changes no gradient.

    Args:
        count: rows of the batch.
        rows: most rows together; None sets no bound.
        tokens: most tokens together; None sets no bound. A row that is longer goes alone.
        together: the tokens of rows start to stop - 1 in one forward.
    """
    start = 0
    while start < count:
        stop = start + 1
        while stop < count and stop - start < (rows or count):
            if tokens is not None and together(start, stop + 1) > tokens:
                break
            stop += 1
        yield start, stop
        start = stop
