"""Policies, learners and what they share. Where to begin reading:

- a policy: sequence_policy.py on policy.py (encoders.py in, heads.py out, backbones/ between);
- what acts: actor.py, and player.py for loops of one's own;
- what learns: decision.py; td3_bc.py and iql.py; ds4_online.py; ppo.py;
- a run: run.py is what train.py asks of one, resumable.py what all share. logged_training.py is
  that of training.py and value_training.py; online_training.py, ppo_training.py and baselines.py
  act while they learn;
- its settings: options.py and the Options beside each learner, read by settings.py;
- what it leaves: checkpoint.py, logger.py, saved.py;
- why it did that: probes/.
"""
