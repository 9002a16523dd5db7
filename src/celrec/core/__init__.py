"""Clustered embeddings for any PyTorch module. Needs torch and numpy, nothing else."""
