"""Interaction data: reading, fetching, partitioning, sampling and making it. Knows no models."""
