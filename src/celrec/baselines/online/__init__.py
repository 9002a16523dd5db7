"""Methods that learn from a stream, to compare with: predict a batch, then learn it."""
