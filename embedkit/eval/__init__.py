"""Scores that can be believed: retrieval on a BEIR folder, any mteb task, each with what made it."""

from embedkit.eval.run import evaluate

__all__ = ["evaluate"]
