//! Losses to checkpoints.
