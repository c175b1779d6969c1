"""The losses: each a sum and a weight, added in one place."""
