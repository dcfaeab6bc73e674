"""How an Encoder meets a million inputs."""

from embedkit.engine.job import embed_to_file
from embedkit.engine.run import embed_documents
from embedkit.engine.vector_file import VectorFile, holds_vectors, open_vectors

__all__ = ["VectorFile", "embed_documents", "embed_to_file", "holds_vectors", "open_vectors"]
