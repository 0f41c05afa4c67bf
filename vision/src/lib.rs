//! Pixels to patch tokens: exact preprocessing and the ViT family.
