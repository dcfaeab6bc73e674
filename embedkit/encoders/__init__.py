"""How a model becomes an Encoder."""

from embedkit.encoders.default_model import DEFAULT_MODEL
from embedkit.encoders.loading import load
from embedkit.encoders.text_encoder import TextEncoder

__all__ = ["DEFAULT_MODEL", "TextEncoder", "load"]
