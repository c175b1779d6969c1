"""Vision transformers: what DINOv2, SigLIP and CLIP share."""
