"""Other people's weights ↔ our parameters."""
