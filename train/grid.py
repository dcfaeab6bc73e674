"""The scores of a model at each of its cells (layers, dims): Spearman on STS collections, nDCG@10 on retrieval collections.

All layers come from one pass, by what the trainer trains (embedkit.train.rows, which checks that a model that is cut gives the same).
A cell's rows are the first `dim` dimensions after `layer` layers, at unit length.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedkit.corpus import read_corpus
from embedkit.corpus.formats import file_rows
from embedkit.encoders.loading import open_for_training
from embedkit.eval.exact import exact_shortlist
from embedkit.eval.metrics import retrieval_scores
from embedkit.eval.retrieval import read_retrieval
from embedkit.statistics import spearman
from embedkit.train.rows import RowMaker
from embedkit.types import Vectors
from embedkit.vectors import unit_rows

LAYERS, DIMS = (1, 2, 3, 4, 5, 6), (16, 32, 64, 128, 256, 384)
STS = {  # name -> file, splits (all when None); STS12 and STS15 in the form that MTEB has, SICK over all its pairs
    "STS-B": ("stsb/data.tsv", ("test",)),
    "STS12": ("sts12/data_senteval.tsv", None),
    "STS15": ("sts15/data_senteval.tsv", None),
    "SICK": ("sick/data.tsv", None),
}
DEV = {"STS-B dev": ("stsb/data.tsv", ("dev",))}
BUDGET = 2048  # tokens a pass
Pairs = tuple[list[str], list[str], np.ndarray]
Grid = dict[str, float]  # "layer/dim" -> score


class Layers:
    """The rows of a model folder after each of its layers."""

    def __init__(self, folder: str | Path, precision: str, device: str = "cpu") -> None:
        model = open_for_training(str(folder), device).eval().requires_grad_(False)
        self._maker = RowMaker(model, budget=BUDGET, precision=precision)

    def rows(self, texts: Sequence[str]) -> Vectors:
        """float32 (layers, texts, width)"""
        pieces = self._maker.pieces([("", text) for text in texts])
        found = np.empty((len(LAYERS), len(texts), self._maker.width), np.float32)
        for part in self._maker.parts(pieces):
            with torch.inference_mode():
                states = self._maker.rows([copy.copy(pieces[place]) for place in part], LAYERS)
            for number, state in enumerate(states):
                found[number, part] = state.cpu().numpy()
        return found


def cells(layered: Vectors) -> Any:
    """(name, unit rows) of each cell."""
    for number, layer in enumerate(LAYERS):
        for dim in DIMS:
            yield f"{layer}/{dim}", unit_rows(layered[number, :, :dim])


def sts_pairs(data: Path, file: str, splits: tuple[str, ...] | None) -> Pairs:
    path = data / file if (data / file).exists() else data / f"{file}.gz"
    rows = [row for _, row in file_rows(path) if splits is None or row["split"] in splits]
    return (
        [row["sentence1"] for row in rows],
        [row["sentence2"] for row in rows],
        np.array([float(row["score"]) for row in rows]),
    )


def sts_grids(
    folder: str | Path, data: Path, collections: Mapping[str, Any] = STS, device: str = "cpu"
) -> dict[str, Grid]:
    """Collection -> its grid of Spearman, in float32."""
    layers, grids = Layers(folder, "float32", device), {}
    for name, (file, splits) in collections.items():
        ones, others, scores = sts_pairs(data, file, splits)
        texts = list(dict.fromkeys(ones + others))
        at = {text: place for place, text in enumerate(texts)}
        left, right = [at[text] for text in ones], [at[text] for text in others]
        found = cells(layers.rows(texts))
        grids[name] = {cell: spearman(scores, np.einsum("ij,ij->i", rows[left], rows[right])) for cell, rows in found}
    return grids


def retrieval_grid(folder: str | Path, path: Path, split: str = "test", device: str = "cpu") -> Grid:
    """nDCG@10 of a split by exact search; the transformer multiplies in bfloat16."""
    layers, task = Layers(folder, "bfloat16", device), read_retrieval(path, split)
    documents = list(read_corpus(path))
    ids, names = [one.id for one in documents], list(task.queries)
    rows = layers.rows([one.full_text for one in documents])
    queries = layers.rows([task.queries[name] for name in names])
    grid = {}
    for (cell, some), (_, asked) in zip(cells(rows), cells(queries), strict=True):
        found, scores = exact_shortlist(asked, some, 10)
        run = {
            name: {ids[row]: float(score) for row, score in zip(*pair, strict=True) if row >= 0}
            for name, *pair in zip(names, found, scores, strict=True)
        }
        values = retrieval_scores(task.qrels, run, ["ndcg@10"])["ndcg@10"].values()
        grid[cell] = float(np.mean(list(values)))
    return grid
