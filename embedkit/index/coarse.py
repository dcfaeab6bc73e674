"""The coarse level: light codes in RAM, any faiss factory string.

faiss is used for what it is good at, codes and kernels; ids, texts and checksums are ours. Its import is late. Codes are
trained on a bounded sample and filled block by block.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from embedkit.errors import DataError, IntegrityError, UsageError, is_out_of_descriptors
from embedkit.index.faiss_import import import_faiss
from embedkit.index.fine import Mask
from embedkit.limits import FACTORY, FACTORY_NUMBER, shown
from embedkit.types import Rows, Vectors

logger = logging.getLogger(__name__)
EXACT_UP_TO = 20_000  # rows; below, exact search answers a query in less than a millisecond
CODE_AT_LEAST = 32  # bytes of a code, unless fewer are asked for
ROW_NUMBER = 8  # bytes that an inverted list holds beside each code
SAMPLE_PER_LIST = 40  # faiss warns under 39 rows a centroid
LEAST = 1000  # rows that codes are trained on
SAMPLE_AT_LEAST, SAMPLE_AT_MOST = 81_920, 524_288
SAMPLE_COPIES = 3  # of the sample in memory while faiss trains
TURN_SAMPLE = 32_768  # rows that a rotation is trained on
OPQ_ROUNDS = 10  # faiss's own 50 take minutes for nothing
BLOCK = 16_384  # rows turned at once
GRAPH_ROWS = 16_384  # a filter that fewer pass is answered without the graph, whose edges lead to others
AT_ONCE = 16384  # queries: faiss holds some ten kilobytes of each
BY_RESERVOIR = 11  # of IndexIVFFastScan: 6 % faster than the default for shortlists of 50 to 100


def automatic_factory(count: int, dim: int, bytes_per_vector: int | None) -> str | None:
    """Exact search for small collections, else inverted lists over 4-bit product quantization after a PCA and a random rotation.

    bytes_per_vector: what a code and its row number may take; by default a code has an eighth of the dimension, at least 32
    bytes, and never more than a sixth: index/README.md shows that larger codes gain nothing, and that RaBitQ and scalars are
    slower at the same size and recall. In few dimensions that is room for 4 or 8 bits each.

    Raises UsageError for less than a code of one byte."""
    if count <= EXACT_UP_TO:
        return None
    usual = max(dim // 8, CODE_AT_LEAST)
    code = usual if bytes_per_vector is None else min(bytes_per_vector - ROW_NUMBER, max(usual, dim // 6))
    if code < 1:
        raise UsageError(
            f"bytes_per_vector={bytes_per_vector} came; expected at least {ROW_NUMBER + 1}: a row number and a code of one byte."
        )
    lists = f"IVF{2 ** round(math.log2(1.5 * math.sqrt(count)))}"
    if code >= dim or dim < 4:
        return f"{lists},SQ8"
    pieces = min(2 * code, dim)  # of 4 bits each
    if pieces == dim or (pieces > dim // 2 and dim % 2 == 0):
        return f"RR{dim},{lists},PQ{dim if pieces == dim else dim // 2}x4fs"
    pieces = min(pieces, dim // 2)
    return f"PCAR{2 * pieces},{lists},PQ{pieces}x4fs"


def check_factory(factory: str, dim: int) -> None:
    """Raises UsageError when faiss cannot make an inner-product index of this string and dimension."""
    new_codes(factory, dim)


def new_codes(factory: str, dim: int) -> Any:
    if len(factory) > FACTORY or any(len(one) > 9 or int(one) > FACTORY_NUMBER for one in re.findall(r"\d+", factory)):
        raise UsageError(
            f"{shown(factory)} came for a faiss factory; expected at most {FACTORY} characters and numbers up to {FACTORY_NUMBER:,}."
        )
    faiss = import_faiss()
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UsageError(
            f"faiss makes no index of {factory!r} in {dim} dimensions ({_reason(error)}); try for example 'IVF64,SQ8' or 'PQ48x4fs'."
        ) from None
    ivf = inverted_lists(index)
    if ivf is not None and faiss.get_num_gpus() > 0:
        ivf.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(ivf.d))
    return index


def _reason(error: RuntimeError) -> str:
    """What faiss says, without its C++ signatures and source lines."""
    return re.split(r"failed: |\.cpp:\d+: ", str(error))[-1].strip()


def inverted_lists(index: Any) -> Any | None:
    """The IVF part of an index, whatever stands in front of it; None where there is none."""
    return import_faiss().try_extract_index_ivf(index)


def least_rows(factory: str, dim: int) -> int:
    """With fewer rows codes are badly trained, or not at all."""
    index = new_codes(factory, dim)
    ivf = inverted_lists(index)
    return max(LEAST, 0 if ivf is None else SAMPLE_PER_LIST * ivf.nlist, SAMPLE_PER_LIST * _centroids(index))


def _centroids(index: Any) -> int:
    """Of each piece of a product quantizer; 0 for codes without one."""
    faiss = import_faiss()
    ivf = inverted_lists(index)
    codes = faiss.downcast_index(index if ivf is None else ivf)
    if isinstance(codes, faiss.IndexPreTransform):
        codes = faiss.downcast_index(codes.index)
    quantizer = getattr(codes, "pq", None)
    return 0 if quantizer is None else int(quantizer.ksub)


def sample_size(factory: str, dim: int, count: int, ram: int | None) -> int:
    """How many rows codes are trained on, whatever the count; within `ram` bytes where they are given.

    Raises UsageError where that is too little for the factory's lists."""
    ivf = inverted_lists(new_codes(factory, dim))
    return sample_for_lists(0 if ivf is None else ivf.nlist, factory, dim, count, ram)


def sample_for_lists(lists: int, factory: str, dim: int, count: int, ram: int | None) -> int:
    """As `sample_size`, where the number of lists is known (0: none)."""
    size = min(count, SAMPLE_AT_MOST, max(SAMPLE_AT_LEAST, SAMPLE_PER_LIST * lists))
    if ram is None:
        return size
    fits = ram // (SAMPLE_COPIES * 4 * dim)
    least = min(size, SAMPLE_PER_LIST * lists or LEAST)
    if fits < least:
        raise UsageError(
            f"{factory!r} is trained on at least {least} rows, {SAMPLE_COPIES * 4 * dim * least:,} bytes, and --ram leaves {ram:,}; "
            f"give more, or choose fewer lists."
        )
    return min(size, fits)


def train(factory: str, dim: int, rows: Callable[[Rows], Vectors], sample: Rows) -> Any:
    """An empty index, trained on the rows of the sample, float32 (n, dim), which `rows` reads.

    What turns the rows before they are coded is trained on fewer, and the rest is read block by block and kept turned: faiss
    would hold the sample twice. Raises DataError when the factory needs more rows to train on than there are."""
    faiss = import_faiss()
    index = new_codes(factory, dim)
    inside, turns = index, []
    if isinstance(index, faiss.IndexPreTransform):
        inside = index.index
        turns = [faiss.downcast_VectorTransform(index.chain.at(place)) for place in range(index.chain.size())]
    try:
        _train_turns(turns, rows(sample[:: -(-len(sample) // TURN_SAMPLE)]))
        turned = np.empty((len(sample), inside.d), dtype=np.float32)
        for start in range(0, len(sample), BLOCK):
            turned[start : start + BLOCK] = _turned(turns, rows(sample[start : start + BLOCK]))
        inside.train(turned)
    except RuntimeError as error:
        raise DataError(
            f"{factory!r} cannot be trained on {len(sample)} rows ({_reason(error)}); choose fewer lists or centroids, or "
            f"--coarse none."
        ) from None
    index.is_trained = True
    return index


def _train_turns(turns: Sequence[Any], rows: Vectors) -> None:
    for turn in turns:
        if hasattr(turn, "niter"):
            turn.niter = OPQ_ROUNDS
        if not turn.is_trained:
            turn.train(rows)
        # a PCA would take off the mean, and inner products would be of other vectors
        if hasattr(turn, "eigen_power"):
            turn.have_bias = False
        rows = turn.apply(rows)


def _turned(turns: Sequence[Any], rows: Vectors) -> Vectors:
    for turn in turns:
        rows = turn.apply(rows)
    return rows


def fill(index: Any, factory: str, blocks: Iterator[Vectors]) -> None:
    """Adds all blocks in order; a row's position is its number."""
    try:
        for block in blocks:
            index.add(block)
            logger.debug("%d rows coded", index.ntotal, extra={"rows": index.ntotal})
    except RuntimeError as error:
        raise UsageError(f"faiss adds no rows to an index of {factory!r} ({_reason(error)}); choose another.") from None


def write_codes(index: Any, stream: IO[bytes]) -> None:
    faiss = import_faiss()
    writer = faiss.PyCallbackIOWriter(stream.write)
    faiss.write_index(index, writer)
    del writer  # flushes what it buffered


class Codes:
    """Codes in RAM, together with the fine rows that verify what they find. path: where they were read from, for errors."""

    def __init__(self, index: Any, kernel: Any, probes: int | None, path: Path | None = None) -> None:
        faiss = import_faiss()
        self.index, self.probes, self._path = index, probes, path
        self._ivf, self._inside = inverted_lists(index), faiss.downcast_index(index)
        self._wrapped = isinstance(self._inside, faiss.IndexPreTransform)
        if self._wrapped:
            self._inside = faiss.downcast_index(self._inside.index)
        self._is_graph = isinstance(self._inside, faiss.IndexHNSW)
        if isinstance(self._inside, faiss.IndexIVFFastScan):
            self._inside.implem = BY_RESERVOIR
        self._verified = faiss.IndexRefine(index, kernel)
        # search parameters by k, shortlist and probes: making them takes as long as a search
        self._kept: dict[tuple[int, int, int | None], Any] = {}

    @property
    def inverted_lists(self) -> int:
        """0 where there are none."""
        return 0 if self._ivf is None else int(self._ivf.nlist)

    @property
    def code_size(self) -> int:
        """Bytes of the code of one row."""
        return int(self._inside.sa_code_size())

    def share_scanned(self, probes: int | None) -> float:
        """Of the codes, by a query that visits so many lists, where there are some."""
        if self._ivf is not None and probes is not None:
            return min(1.0, probes / self.inverted_lists)
        return min(1.0, GRAPH_ROWS / max(1, self.index.ntotal)) if self._is_graph else 1.0

    @classmethod
    def read(cls, path: Path, kernel: Any, probes: int | None) -> Codes:
        """The file's checksum has been verified: faiss trusts what it reads."""
        faiss = import_faiss()
        try:
            index = faiss.read_index(str(path))
        except (RuntimeError, MemoryError) as error:
            if is_out_of_descriptors(error):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path)) from None
            raise IntegrityError(f"{path} cannot be read by this faiss ({error}); build the index again.") from None
        if (index.ntotal, index.d) != (kernel.ntotal, kernel.d) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise IntegrityError(f"{path} holds codes of other rows than its manifest says; build the index again.")
        return cls(index, kernel, probes, path)

    def search(
        self, queries: Vectors, k: int, shortlist: int, mask: Mask | None = None, probes: int | None = None
    ) -> tuple[Vectors, Rows]:
        """The best k of a shortlist of each query, by the fine rows: scores and rows (q, k), best first, -1 for none.

        mask: the only rows that count. probes: instead of those stored."""
        k = min(k, self.index.ntotal)
        shortlist = max(k, min(shortlist, self.index.ntotal))
        if mask is None:
            return self._search(queries, k, shortlist, None, probes)
        try:
            return self._search(queries, k, shortlist, mask.selector, probes)
        except RuntimeError:  # this kind of codes knows no selector: a longer list, then the mask
            return self._masked(lambda size: self._search(queries, size, size, None, probes), k, shortlist, mask)

    def coarse_scores(
        self, queries: Vectors, shortlist: int, probes: int | None = None, mask: Mask | None = None
    ) -> tuple[Vectors, Rows]:
        """What the codes alone say: scores and rows (q, shortlist), best first. mask: the only rows that count."""
        queries, size = np.ascontiguousarray(queries), min(shortlist, self.index.ntotal)

        def search(size: int, selector: Any = None) -> tuple[Vectors, Rows]:
            scores, rows = self._asked(self.index, queries, size, self._parameters(size, selector, probes), selector)
            if rows.max(initial=-1) >= self.index.ntotal:
                raise self._damaged("they name rows that are not there")
            return scores, rows

        if mask is None:
            return search(size)
        try:
            return search(size, mask.selector)
        except RuntimeError:
            return self._masked(search, size, size, mask)

    def _search(
        self, queries: Vectors, k: int, shortlist: int, selector: Any, probes: int | None
    ) -> tuple[Vectors, Rows]:
        faiss = import_faiss()
        key = (k, shortlist, probes)
        parameters = self._kept.get(key) if selector is None else None
        if parameters is None:
            inside = self._parameters(shortlist, selector, probes)
            quotient = (shortlist + 0.5) / max(k, 1)  # faiss multiplies it with k in float32, and cuts
            parameters = faiss.IndexRefineSearchParameters(k_factor=quotient, base_index_params=inside)
            if selector is None:
                self._kept[key] = parameters
        return self._asked(self._verified, np.ascontiguousarray(queries), k, parameters, selector)

    def _asked(self, index: Any, queries: Vectors, k: int, parameters: Any, selector: Any) -> tuple[Vectors, Rows]:
        """What faiss finds. Codes may be whole and yet not fit together, if they came from elsewhere: it says so only here."""
        try:
            if len(queries) <= AT_ONCE:
                scores, rows = index.search(queries, k, params=parameters)
                return scores, rows
            scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
            for start in range(0, len(queries), AT_ONCE):
                part = slice(start, start + AT_ONCE)
                scores[part], rows[part] = index.search(queries[part], k, params=parameters)
        except RuntimeError as error:
            if selector is not None:  # which these codes may not know
                raise
            raise self._damaged(_reason(error)) from None
        return scores, rows

    def _damaged(self, reason: str) -> IntegrityError:
        return IntegrityError(f"{self._path} cannot be searched ({reason}); build the index again.")

    def _parameters(self, shortlist: int, selector: Any, probes: int | None) -> Any:
        faiss = import_faiss()
        chosen = {} if selector is None else {"sel": selector}
        parameters = None
        if self._ivf is not None:
            lists = min(probes or self.probes or self._ivf.nprobe, self._ivf.nlist)
            parameters = faiss.SearchParametersIVF(nprobe=lists, **chosen)
        elif self._is_graph:
            parameters = faiss.SearchParametersHNSW(efSearch=shortlist, **chosen)
        elif chosen:
            parameters = faiss.SearchParameters(**chosen)
        if self._wrapped and parameters is not None:
            parameters = faiss.SearchParametersPreTransform(index_params=parameters)
        return parameters

    def _masked(
        self, search: Callable[[int], tuple[Vectors, Rows]], k: int, shortlist: int, mask: Mask
    ) -> tuple[Vectors, Rows]:
        """The best k of longer lists, until enough of these pass. search: a list of any length, best first."""
        enough = min(shortlist, mask.count)
        size = shortlist
        while True:
            scores, rows = search(size)
            keep = (rows >= 0) & mask.rows[rows]
            if size == self.index.ntotal or keep.sum(axis=1).min(initial=enough) >= enough:
                break
            size = min(2 * size, self.index.ntotal)
        order = np.argsort(~keep, axis=1, kind="stable")[:, :k]  # the kept ones first, in their order
        kept = np.take_along_axis(keep, order, axis=1)
        rows = np.where(kept, np.take_along_axis(rows, order, axis=1), -1)
        return np.where(kept, np.take_along_axis(scores, order, axis=1), -np.inf).astype(np.float32), rows
