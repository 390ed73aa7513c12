"""Datasets, environments, rollouts and scores; knows nothing of agents. Where to begin reading:

- logged data: datasets.py gives trajectories.py, from which batches.py, windows.py and
  transitions.py draw;
- playing: timestep.py says what an agent is, rollout.py plays whole episodes, stream.py episodes
  without end, both over rows.py of environments;
- judging: task.py, scores.py and statistics.py; video.py films.
"""
