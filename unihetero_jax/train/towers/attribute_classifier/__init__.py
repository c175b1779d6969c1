"""Training of the classifier of a watch's attributes."""
