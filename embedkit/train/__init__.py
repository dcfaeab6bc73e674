"""Training: recipes in, model folders out. Losses are functions of tensors, and know no model."""
