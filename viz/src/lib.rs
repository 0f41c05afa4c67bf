//! Rerun, and nothing but rerun.
