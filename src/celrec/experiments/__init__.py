"""Experiments: a run from its configuration to its folder, and the demo."""
