"""A model computed in the ways that servers get wrong: another prompt, another pooling, another length, another case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from embedkit.encoders.doctor.patient import cosines
from embedkit.encoders.routes import is_routed
from embedkit.types import Vectors

POOLINGS = ("mean", "cls", "lasttoken", "max", "weightedmean")
# limits that servers and libraries are set to; between two texts not far apart in length every number is tried
LIMITS = (
    16,
    32,
    64,
    100,
    128,
    192,
    200,
    250,
    254,
    256,
    300,
    384,
    400,
    500,
    510,
    512,
    768,
    1000,
    1024,
    2048,
    4096,
    8192,
)
NEAR = 64  # tokens


class Variant(NamedTuple):
    """What the other side may be doing, as a finding says it, and the rows that it would then give."""

    name: str
    said: str
    fix: str
    rows: Vectors  # (n, width)


class Bench:
    """The model's modules, run by hand on a list of texts."""

    def __init__(self, model: Any, texts: Sequence[str], prompt: str) -> None:
        self.model, self.texts, self.prompt = model, list(texts), prompt  # a SentenceTransformer in float32
        self.limit: int | None = model.max_seq_length
        plain = not is_routed(model)  # a Router's routes have pooling and limits of their own
        pools = [module for module in model.children() if plain and type(module).__name__ == "Pooling"]
        self.pooling = next((pool for pool in pools if isinstance(pool.pooling_mode, str)), None)  # of one mode

    def rows(
        self, texts: Sequence[str], prompt: str, *, pooling: str | None = None, limit: int | None = None
    ) -> Vectors:
        """(n, width), each text computed alone, so that padding plays no part; not normed."""
        import torch
        from sentence_transformers.sentence_transformer.modules import Pooling

        made = []
        if limit is not None:
            self.model.max_seq_length = limit
        try:
            with torch.inference_mode():
                for text in texts:
                    features = self.model.preprocess([text], prompt=prompt or None, task="document")
                    features["task"] = "document"  # what a Router goes by
                    for module in self.model.children():
                        replaced = pooling is not None and module is self.pooling
                        step = Pooling(module.embedding_dimension, pooling) if replaced else module
                        features = step(features)
                    made.append(features["sentence_embedding"][0].float().numpy())
        finally:
            if limit is not None:
                self.model.max_seq_length = self.limit
        return np.stack(made)

    def lengths(self) -> list[int]:
        """Tokens of each text with the prompt, uncut."""
        read = self.model.tokenizer([self.prompt + text for text in self.texts], truncation=False, verbose=False)
        return [len(ids) for ids in read["input_ids"]]


def variants(bench: Bench, stored: Mapping[str, str], theirs: Vectors, same: float) -> Iterator[Variant]:
    """Each variant, the simplest first. stored: name -> literal prompt; same: the cosine from which rows count as equal."""
    if bench.prompt:
        yield Variant(
            "no-prompt",
            f"applies no prompt; this model puts {bench.prompt!r} in front",
            "Put the prompt in front of the texts that you send, or set the server's default prompt.",
            bench.rows(bench.texts, ""),
        )
    others = {text: name for name, text in stored.items() if text and text != bench.prompt}
    for text, name in others.items():
        yield Variant(
            f"prompt-{name}",
            f"puts the prompt {name!r} ({text!r}) in front; this model takes {bench.prompt or 'none'!r} for documents",
            "Set the server's default prompt to that of the texts that it gets, or to none.",
            bench.rows(bench.texts, text),
        )
    if bench.pooling is not None:
        for mode in POOLINGS:
            if mode != bench.pooling.pooling_mode:
                yield Variant(
                    f"pooling-{mode}",
                    f"pools by {mode}; this model by {bench.pooling.pooling_mode}",
                    f"Set the server's pooling to {bench.pooling.pooling_mode} (TEI: --pooling; vLLM: --pooler-config).",
                    bench.rows(bench.texts, bench.prompt, pooling=mode),
                )
        yield from _cut_elsewhere(bench, theirs, same)
    yield Variant(
        "lower-cased",
        "lower-cases the texts",
        "Take the tokenizer that belongs to the model.",
        bench.rows([text.lower() for text in bench.texts], bench.prompt),
    )


def _cut_elsewhere(bench: Bench, theirs: Vectors, same: float) -> Iterator[Variant]:
    """The limit at which the other side cuts: above every text that agrees, below the shortest that does not."""
    ours = bench.rows(bench.texts, bench.prompt)
    lengths = np.array(bench.lengths())
    agrees = cosines(ours, theirs) >= same
    if agrees.all() or not agrees.any() or lengths[agrees].max() >= lengths[~agrees].min():
        return
    shortest = int(np.flatnonzero(~agrees)[np.argmin(lengths[~agrees])])
    text, wanted = bench.texts[shortest], theirs[shortest : shortest + 1]

    def cosine(limit: int) -> float:
        return float(cosines(bench.rows([text], bench.prompt, limit=limit), wanted)[0])

    limit = max(_limits(bench, int(lengths[agrees].max()), int(lengths[shortest])), key=cosine, default=0)
    if limit:
        yield Variant(
            f"cut-at-{limit}",
            f"cuts texts at {limit} tokens; this model at {bench.limit}",
            f"Set the server's limit to {bench.limit} tokens, or load this model with max_tokens={limit}.",
            bench.rows(bench.texts, bench.prompt, limit=limit),
        )


def _limits(bench: Bench, agrees: int, differs: int) -> list[int]:
    most = getattr(getattr(bench.model[0], "config", None), "max_position_embeddings", None) or max(LIMITS)
    below = range(agrees, differs) if differs - agrees <= NEAR else [n for n in LIMITS if agrees <= n < differs]
    above = [n for n in (*LIMITS, most) if bench.limit and bench.limit < n <= most]
    return [n for n in (*below, *above) if n != bench.limit]
