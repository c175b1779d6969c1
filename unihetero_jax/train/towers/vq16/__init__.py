"""Training of a VQ autoencoder."""
