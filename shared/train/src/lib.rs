//! Training: objectives, optimizer, checkpoints.
