"""Streams: sources of events, read in order, from a position that a checkpoint saved."""
