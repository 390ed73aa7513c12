"""Decision S4: reinforcement-learning agents that remember."""

__version__ = "0.1.0"
