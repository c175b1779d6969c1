"""A trained model as a model of lmms-eval."""
