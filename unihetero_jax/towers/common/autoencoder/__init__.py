"""Image autoencoders: what VQ-16 and KL-16 share."""
