"""An embedkit index as a search model of mteb, so that its retrieval tasks are run through what will be served."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.encoder import Encoder
from embedkit.errors import DataError, UsageError
from embedkit.eval.mteb_model import MtebModel
from embedkit.index import Index
from embedkit.jobs import IndexRecipe, build_index, metric_of
from embedkit.recipe import known_recipes
from embedkit.types import Vectors


def recipe_of(asked: str) -> IndexRecipe:
    """What `--index` names: a recipe, or only its coarse level ("auto", "none", a faiss factory string).

    Raises UsageError for a recipe with a sparse leg, which would not be searched."""
    named = asked in known_recipes("index") or asked.endswith((".yaml", ".yml"))
    recipe = IndexRecipe.read(asked) if named else IndexRecipe(coarse=asked)
    if recipe.sparse not in (None, "none"):
        raise UsageError(
            f"{asked} has a sparse leg ({recipe.sparse}), which eval does not search; build the index, let embedkit search "
            f"--mode hybrid --queries write a run, and score that with --run."
        )
    return recipe


class MtebIndex(MtebModel):
    """Fulfils mteb's SearchProtocol beside EncoderProtocol: a corpus is searched through an index of it, which is given or
    built by a recipe. Tasks that only rank given candidates, and those without a corpus, are left to the encoder."""

    def __init__(self, encoder: Encoder, through: Index | IndexRecipe, scratch: Path | None = None) -> None:
        """scratch: where indexes are built; they are removed again."""
        name = through.path.name if isinstance(through, Index) else through.settings
        options = through.query_options if isinstance(through, Index) else {}
        experiment = {"index": name} if isinstance(name, str) else name
        super().__init__(encoder, experiment, query_prompt=options.get("prompt_name"))
        self._through, self._scratch = through, scratch
        self._corpus: Any = None
        self.search_info: Mapping[str, Any] | str = "exact"  # of the last index that was searched

    def index(self, corpus: Any, **_: Any) -> None:
        """Notes the corpus; whether it is to be searched is known once the queries come."""
        self._corpus = corpus

    def search(
        self,
        queries: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        encode_kwargs: Any,
        top_ranked: Any = None,
        num_proc: int | None = None,
        **_: Any,
    ) -> dict[str, dict[str, float]]:
        """query id -> document id -> score, of the top_k best."""
        place: dict[str, Any] = {"task_metadata": task_metadata, "hf_split": hf_split, "hf_subset": hf_subset}
        options: dict[str, Any] = {**place, "encode_kwargs": encode_kwargs, "num_proc": num_proc}
        if top_ranked:
            from mteb.models.search_wrappers import SearchEncoderWrapper

            exact = SearchEncoderWrapper(self)
            exact.index(self._corpus, **options)
            found: dict[str, dict[str, float]] = exact.search(queries, top_k=top_k, top_ranked=top_ranked, **options)
            return found
        asked = self._embedded(queries, "query", place)
        if isinstance(self._through, Index):
            return self._found(self._through, queries, asked, top_k)
        rows = self._embedded(self._corpus, "document", place)
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            ids = list(map(str, self._corpus["id"]))
            settings = {"metric": metric_of(self.encoder.similarity), **vars(self._through)}
            with build_index(rows, Path(folder) / "index", ids=ids, **settings) as index:
                return self._found(index, queries, asked, top_k)

    def _found(self, index: Index, queries: Any, asked: Vectors, top_k: int) -> dict[str, dict[str, float]]:
        hits = index.search(asked, k=min(top_k, len(index)), documents=False)
        self.search_info = index.info()
        known = set(map(str, self._corpus["id"]))
        if not known & {one for ids in hits.ids for one in ids}:
            raise DataError(f"{index.path} holds no document of this task's corpus; build an index of it.")
        rows = zip(queries["id"], hits.ids, hits.scores, strict=True)
        return {str(query): dict(zip(ids, map(float, scores), strict=False)) for query, ids, scores in rows}

    def _embedded(self, rows: Any, role: str, place: Mapping[str, Any]) -> Vectors:
        """Rows of a corpus or of queries, with the texts and prompts that mteb would give an encoder."""
        from mteb._create_dataloaders import create_dataloader
        from mteb.types import PromptType

        kind = PromptType(role)
        loader = create_dataloader(rows, task_metadata=place["task_metadata"], prompt_type=kind, batch_size=1024)
        return np.asarray(self.encode(loader, prompt_type=kind, **place), dtype=np.float32)


def reads_corpus(task: Any) -> bool:
    """Whether a task of mteb searches a corpus."""
    from mteb.abstasks import AbsTaskRetrieval

    return isinstance(task, AbsTaskRetrieval) and "Reranking" not in task.metadata.type
