"""Sources of training records, one file for each kind; a config chooses them in ``data.sources``."""
