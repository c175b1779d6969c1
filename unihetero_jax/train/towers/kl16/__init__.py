"""Training of a KL autoencoder."""
