"""An index in the formats of others: numpy and parquet, plain faiss, LanceDB, Qdrant."""

from embedkit.export.exporting import FORMATS, export_index

__all__ = ["FORMATS", "export_index"]
