"""How many bytes the files of a segment take, worked out from the number of its rows before there are any.

Formulas of the formats, not fits: fine rows and ids are exact; codes are exact but for the padding of fast-scan lists, which
depends on how full the last block of 32 of each list is (half, in the mean), and for the upper levels of a graph; a SQLite file
is within a few percent. Metadata fields count as text: what their postings take beside it depends on the values.
"""

from __future__ import annotations

import functools
import math
import re
from typing import Any, NamedTuple

from embedkit.index.coarse import ROW_NUMBER, inverted_lists, new_codes
from embedkit.index.documents import ENTRY, bucket_bits
from embedkit.index.faiss_import import import_faiss
from embedkit.index.fine import STORED
from embedkit.storage import HEADER

FLOAT = 4
PACKED = 32  # rows in one block of fast-scan codes
LIST_HEADERS = {True: 24, False: 8}  # faiss writes before a list: its sizes; True: fast scan
LISTS = re.compile(r"(?<=IVF)\d+(?=,)")
PAGE = 4096  # bytes of SQLite
PAGE_HEADER, OVERFLOW_HEADER = 8, 4
CELL = 24  # bytes of a document's row beside its id and texts: lengths, types, place in the page, two checksums
LARGEST_LOCAL = PAGE - 35  # payload that a page holds whole
SMALLEST_LOCAL = (PAGE - 12) * 32 // 255 - 23
BUCKET_CELL = 16  # likewise, of a bucket of ids
EMPTY_METADATA = len("{}")


class Anatomy(NamedTuple):
    """What an index of a factory string consists of."""

    dim: int  # of the rows
    inner_dim: int  # of what is coded, after a PCA or a rotation
    turned: bool  # whether there is one
    lists: int  # 0: none
    code: int  # bytes of the code of a row as it is held
    beside: float  # bytes that each row takes beside its code: row number, links of a graph
    fixed: int  # bytes that do not depend on the rows: centroids, rotations
    packed: bool  # fast scan: codes in blocks of 32 rows
    learned_from: int  # residuals that faiss holds while it trains the coder, at most
    family: str | None  # "fast" (4-bit codes scanned in registers), "scalar", None: neither

    @property
    def scanned(self) -> str:
        """How its codes are scanned: one list after the other, or, flat, in one stream that all queries of a batch share."""
        return str(self.family) if self.lists else f"flat {self.family}"

    def codes(self, rows: int) -> int:
        """Bytes of the file of codes, which is what they take in RAM."""
        padding = max(1, self.lists) * (PACKED - 1) / 2 * self.code if self.packed else 0
        if self.packed and not self.lists:
            padding = -rows % PACKED * self.code
        return round(rows * (self.code + self.beside) + padding) + self.fixed


@functools.cache
def anatomy(factory: str, dim: int) -> Anatomy | None:
    """Of codes by this faiss factory string; None for kinds that are not known here."""
    faiss = import_faiss()
    # inverted lists are counted, not made: a million take a second, and their centroids are not there before training anyway
    index, named = new_codes(LISTS.sub("1", factory), dim), LISTS.search(factory)
    ivf, fixed, inside = inverted_lists(index), 0, index
    if isinstance(index, faiss.IndexPreTransform):
        turns = [faiss.downcast_VectorTransform(index.chain.at(place)) for place in range(index.chain.size())]
        fixed, inside = sum(map(_turn_bytes, turns)), faiss.downcast_index(index.index)
    if (ivf is not None) != (named is not None):
        return None  # lists that are found by something else than their centroids
    lists = 0 if named is None else int(named[0])
    coder = inside
    links = 0.0
    if isinstance(inside, faiss.IndexHNSW):
        coder, links = faiss.downcast_index(inside.storage), _links(inside.hnsw.nb_neighbors(1))
    kinds = _kinds(faiss)
    kind = next((kind for kind in kinds if type(coder) is kind), None)
    if kind is None:
        return None
    family, packed = kinds[kind]
    fixed += lists * (FLOAT * inside.d + LIST_HEADERS[packed]) + _trained_bytes(coder)
    code = coder.M2 // 2 if packed else int(coder.code_size)
    return Anatomy(
        dim=dim,
        inner_dim=int(inside.d),
        turned=inside is not index,
        lists=lists,
        code=code,
        beside=links + (ROW_NUMBER if lists else 0),
        fixed=fixed,
        packed=packed,
        learned_from=0 if ivf is None else int(ivf.train_encoder_num_vectors()),
        family=None if links else family,
    )


def _kinds(faiss: Any) -> dict[type, tuple[str | None, bool]]:
    """Class -> (family, whether its codes are packed)."""
    return {
        faiss.IndexIVFPQFastScan: ("fast", True),
        faiss.IndexPQFastScan: ("fast", True),
        faiss.IndexIVFScalarQuantizer: ("scalar", False),
        faiss.IndexScalarQuantizer: ("scalar", False),
        faiss.IndexIVFFlat: ("scalar", False),
        faiss.IndexFlat: ("scalar", False),
        faiss.IndexFlatIP: ("scalar", False),
        faiss.IndexIVFPQ: (None, False),
        faiss.IndexPQ: (None, False),
        faiss.IndexIVFRaBitQ: (None, False),
        faiss.IndexRaBitQ: (None, False),
    }


def _turn_bytes(turn: Any) -> int:
    """A matrix and its offset; a PCA keeps mean, eigenvalues and the whole matrix beside the part that it uses."""
    numbers = int(turn.d_in) * int(turn.d_out)
    if hasattr(turn, "eigen_power"):
        numbers += turn.d_in * turn.d_in + 2 * turn.d_in
    return FLOAT * numbers


def _trained_bytes(coder: Any) -> int:
    """What the coder learns: the codebooks of a product quantizer, the ranges of scalars."""
    if (quantizer := getattr(coder, "pq", None)) is not None:
        return FLOAT * int(quantizer.d) * int(quantizer.ksub)
    return 2 * FLOAT * int(coder.d) if hasattr(coder, "sq") else 0


def _links(upper: int) -> float:
    """Bytes a node of HNSW (Malkov and Yashunin 2016): 2M neighbours, M on each higher level, which one node in M reaches; its
    level, and where its neighbours begin."""
    return 4 * (2 * upper + upper / (upper - 1)) + 4 + 8


def fine_bytes(rows: int, dim: int, fine: str) -> int:
    """Of the rows that verify."""
    return HEADER + rows * dim * STORED[fine].itemsize


def id_bytes(rows: int, text: float | None) -> int:
    """text: mean bytes of an id; None for whole numbers, up to 32 bits."""
    return (
        HEADER + 4 * rows
        if text is None
        else HEADER + (4 if rows * text < 1 << 32 else 8) * (rows + 1) + round(rows * text)
    )


def document_bytes(documents: int, text: float, identifier: float) -> int:
    """Of the SQLite file. text, identifier: mean bytes of title, text and metadata, and of an id, of each document."""
    buckets = 1 << bucket_bits(documents)
    bucket = BUCKET_CELL + ENTRY.itemsize * documents / buckets
    pages = buckets / max(1, (PAGE - PAGE_HEADER) // bucket)
    cell = CELL + identifier + max(text, EMPTY_METADATA)
    overflow = 0
    if cell > LARGEST_LOCAL:
        rest = PAGE - OVERFLOW_HEADER
        local = SMALLEST_LOCAL + (cell - SMALLEST_LOCAL) % rest
        local = local if local <= LARGEST_LOCAL else SMALLEST_LOCAL
        overflow, cell = math.ceil((cell - local) / rest), local
    inside = PAGE - PAGE_HEADER - cell / 2  # a row that does not fit begins the next page
    pages += documents * (overflow + 1 / max(1, inside / cell))
    return round(PAGE * (pages + 6))
