"""Policies, learners and what they share: encoders, heads, checkpoints, logging."""
