//! Layers, attention, weights, kernels and random streams: the ground under the models.
