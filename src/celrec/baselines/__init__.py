"""Other ways to save memory, under the same contract as `torch.nn.Embedding`."""
