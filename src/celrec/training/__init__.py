"""Training and evaluation of recommenders on interactions."""
