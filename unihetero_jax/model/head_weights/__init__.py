"""Published weights of heads, found by the kind that ``weights.from_state_dict`` is given."""
