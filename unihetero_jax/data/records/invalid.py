"""Records that cannot be used for training, and the reasons under which they are counted."""

from __future__ import annotations

# Most pixels of an image that is decoded, unless a config or a flag sets another limit.
MAX_PIXELS = 50_000_000
# The columns of the data state: append new ones at the end, so that older states keep their meaning.
SKIP_REASONS = ("unreadable", "undecodable", "invalid", "too_long", "too_large", "nothing_learned", "filtered")
# No bad record: a filter of the user's dropped it.
FILTERED = "filtered"


class InvalidRecord(ValueError):
    """A record cannot become a sample.

    Attributes:
        reason: The counter that it falls under, one of ``SKIP_REASONS``.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        assert reason in SKIP_REASONS, reason
        self.reason = reason
