"""Sequence layers behind one contract (base.py)."""
