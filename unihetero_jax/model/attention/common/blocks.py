"""Sizes that the attention kernels work in. No JAX here: counting FLOPs should not wait for it."""

from __future__ import annotations

# Slots of a block of the kernels; a row has to be a multiple.
BLOCK = 128
# Channels that splash attention takes at a time.
LANES = 128
# The largest blocks that are usual for heads of 128; larger ones do not fit the memory beside the matrix unit.
_LARGEST_BLOCK = 512


def splash_block(slots: int) -> int:
    """Return the block size of splash attention, in slots, for a device's part of a row."""
    return max(size for size in range(BLOCK, _LARGEST_BLOCK + 1, BLOCK) if slots % size == 0)
