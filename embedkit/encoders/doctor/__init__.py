"""What may be wrong with a model although it opens: checks by trying, and a comparison with another server or library."""
