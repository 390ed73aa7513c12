"""Datasets, environments, rollouts and scores; knows nothing of agents."""
