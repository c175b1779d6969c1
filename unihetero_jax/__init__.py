"""unihetero_jax: a pretraining stack for unified vision-language models, in JAX and Flax NNX."""

__version__ = "0.1.0"
