"""CelebA (arXiv 1411.7766) as questions, captions and requests, from the user's own copy (arXiv 2505.23043)."""
