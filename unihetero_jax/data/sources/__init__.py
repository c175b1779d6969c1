"""Where records come from, one file or folder a source."""
