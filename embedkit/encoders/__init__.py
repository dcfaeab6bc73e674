"""How a model becomes an Encoder."""

from embedkit.encoders.default_model import DEFAULT_MODEL
from embedkit.encoders.loading import load
from embedkit.encoders.torch_encoder import TorchEncoder

__all__ = ["DEFAULT_MODEL", "TorchEncoder", "load"]
