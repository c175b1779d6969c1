"""What makes a record unfit for training, and the counters of those that were left out."""

from __future__ import annotations

# The data state has a column each, in this order: new ones go to the end, so that older states keep their meaning.
SKIP_REASONS = ("unreadable", "undecodable", "invalid", "too_long", "too_large", "nothing_learned")


class InvalidRecord(ValueError):
    """A record of the dataset cannot become a sample. ``reason`` is the counter that it falls under."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        assert reason in SKIP_REASONS, reason
        self.reason = reason
