"""Equal captions among the pairs of a source: what they mean for training and for evaluation."""

from collections.abc import Sequence

from ..messages import quoted
from .sources import ColumnPairs, FilePairs, PairDataset, SkipUnreadable
from .streams import Caption


def check_captions(pairs: PairDataset) -> None:
    """Raise ValueError where all captions are equal, because nothing then tells one image from another."""
    captions = _captions(pairs)
    if captions is not None and len(captions) > 1 and _count_distinct(captions) == 1:
        raise ValueError(
            f"All {len(captions)} pairs have the caption {quoted(captions[0])}, and there must be at least 2 different "
            "ones to tell apart."
        )


def describe_equal_captions(pairs: PairDataset) -> str:
    """Return how many pairs to measure on share a caption with others, and how they count; nothing if none does."""
    captions = _captions(pairs)
    if captions is None or (distinct := _count_distinct(captions)) == len(captions):
        return ""
    return (
        f"The {len(captions):,} pairs to measure on have {distinct:,} different captions; every image with an equal "
        "caption counts as right for it."
    )


def _captions(pairs: PairDataset) -> Sequence[Caption] | None:
    """Return the captions of all pairs, or None for a stream."""
    if isinstance(pairs, SkipUnreadable):
        return _captions(pairs.pairs)
    if isinstance(pairs, FilePairs):
        return pairs.texts
    return list(pairs.data[pairs.text_column]) if isinstance(pairs, ColumnPairs) else None


def _count_distinct(captions: Sequence[Caption]) -> int:
    return len({caption if isinstance(caption, str) else tuple(caption or ()) for caption in captions})
