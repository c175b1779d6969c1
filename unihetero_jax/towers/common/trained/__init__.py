"""What ``unihetero towers train`` stores, by kind: the class of its config, and its network."""
