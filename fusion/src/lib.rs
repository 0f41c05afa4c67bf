//! Projectors, where image tokens go, and the assembled VLM.
