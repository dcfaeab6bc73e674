"""How an Encoder meets a million inputs."""

from embedkit.engine.run import embed_documents
from embedkit.engine.vector_file import VectorFile, open_vectors, write_vectors

__all__ = ["VectorFile", "embed_documents", "open_vectors", "write_vectors"]
