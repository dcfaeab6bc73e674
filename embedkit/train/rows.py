"""Texts in, rows with gradients out: any text model that sentence-transformers opens, whole and after some of its layers.

The texts of a batch, of all columns together, are sorted by length and go through the model in parts of one token budget; BERT and
its kin without any padding (packed.py), others with little. Prompts are told from texts by characters (pieces.py). The
transformer may multiply in bfloat16; pooling and what follows are in float32.

A layer's row is what the model gives when it is cut there: the family's last norm, where it norms before each block, then
pooling and heads. That this is so is tried once, on a model that is cut.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Normalize
from torch import Tensor, nn
from torch.nn.functional import normalize

from embedkit.encoders.batches import token_batches
from embedkit.encoders.foreign import FAILED, STEP, as_model_error
from embedkit.encoders.layers import keep_layers
from embedkit.encoders.opened import limited
from embedkit.encoders.pieces import Piece, Tokenization
from embedkit.encoders.sentence_transformer import positions_of
from embedkit.encoders.torch_backend import attention_without_plans, fast_tokenizer, pad_id, padded, truncation_side
from embedkit.errors import ModelError
from embedkit.train.packed import Layout, can_be_packed, packed_attention, packed_features

LAST_NORMS = ("final_norm", "norm", "ln_f", "final_layer_norm")  # of families that norm before each block
Text = tuple[str, str]  # prompt, text
TRIAL: list[Text] = [("", "a short text"), ("", "and a somewhat longer one, so that something is padded")]


class RowMaker:
    """A SentenceTransformer, its tokenizer and the layers whose rows are wanted."""

    def __init__(self, model: Any, *, budget: int, precision: str = "float32", max_tokens: int | None = None) -> None:
        self.model, self._budget = model, budget
        self._dtype = torch.bfloat16 if precision == "bfloat16" else None
        tokenizer, self._pad = fast_tokenizer(model), pad_id(model)
        if tokenizer is None:
            raise ModelError(
                "The model takes more than the ids of a fast tokenizer; training is for text models with one."
            )
        pool_prompt = all(getattr(module, "include_prompt", True) for module in model.children())
        if max_tokens is not None:
            limited(max_tokens, None, positions_of(model), model[0].auto_model.name_or_path)  # or a UsageError
        limit, side = max_tokens or model.max_seq_length, truncation_side(model)
        self._tokenization = Tokenization(tokenizer, limit, pool_prompt=pool_prompt, side=side)
        self._packs = False
        self._packs = can_be_packed(model[0].auto_model) and self._packed_agrees()

    @property
    def depth(self) -> int:
        """Layers of the transformer."""
        return int(self.model[0].auto_model.config.num_hidden_layers)

    @property
    def width(self) -> int:
        return int(self.model.get_embedding_dimension())

    def pieces(self, texts: Sequence[Text]) -> list[Piece]:
        """Token ids of (prompt, text) pairs, in their order; texts beyond the limit are cut."""
        found: list[Piece | None] = [None] * len(texts)
        for prompt in dict.fromkeys(prompt for prompt, _ in texts):
            places = [i for i, (one, _) in enumerate(texts) if one == prompt]
            made = self._tokenization.pieces([texts[i][1] for i in places], prompt)
            for place, piece in zip(places, made, strict=True):
                found[place] = piece
        return [piece for piece in found if piece is not None]

    def parts(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """Positions of the pieces that go through the model together."""
        return list(token_batches([piece.length for piece in pieces], self._budget))

    def rows(self, pieces: Sequence[Piece], layers: Sequence[int] = ()) -> list[Tensor]:
        """float32 (n, width) after each of the layers, 0 being the embeddings; of the whole model when left out.

        As they come from pooling and dense heads: a Normalize at the model's end is left to what they are cut by, since the
        alignments of 2DMSE and ESE are of rows that have their own length."""
        transformer, device = self.model[0], self.model.device
        config = transformer.auto_model.config
        early = [layer for layer in layers if layer != self.depth]
        features = {name: tensor.to(device) for name, tensor in padded(list(pieces), self._pad).items()}
        layout = Layout(pieces, device) if self._packs else None
        with ExitStack() as modes:
            modes.enter_context(as_model_error(FAILED, STEP))
            modes.enter_context(attention_without_plans(device))
            if early:
                modes.enter_context(_hidden_states(config))
            if self._dtype:
                modes.enter_context(torch.autocast(device.type, self._dtype))
            if layout:
                modes.enter_context(packed_attention(config, layout))
            found = transformer(dict(features) if layout is None else packed_features(pieces, layout, config))
            last = found["token_embeddings"]
        if "pooling_mask" in features:
            features["attention_mask"] = features.pop("pooling_mask")
        states = found.get("all_layer_embeddings", ())
        wanted = [last if layer == self.depth else self._normed(states[layer]) for layer in layers or [self.depth]]
        return [self._pooled(features, layout.padded(state[0]) if layout else state) for state in wanted]

    def _normed(self, state: Tensor) -> Tensor:
        norm = next(
            (one for name in LAST_NORMS if isinstance(one := getattr(self.model[0].auto_model, name, None), nn.Module)),
            None,
        )
        return state if norm is None else norm(state)

    def _pooled(self, features: dict[str, Any], state: Tensor) -> Tensor:
        features = {**features, "token_embeddings": state.float()}
        with as_model_error(FAILED, STEP):
            for module in self._heads():
                features = module(features)
            rows: Tensor = features["sentence_embedding"]
        return rows

    def _heads(self) -> list[nn.Module]:
        """What follows the transformer, without a Normalize at the end."""
        modules = list(self.model.children())[1:]
        return modules[:-1] if modules and isinstance(modules[-1], Normalize) else modules

    @torch.no_grad()
    def _packed_agrees(self) -> bool:
        """Whether rows are the same without padding."""
        packing, training = copy.copy(self), self.model.training
        packing._packs = True
        self.model.eval()
        pieces = self.pieces(TRIAL)
        agree = _distance(packing.rows(pieces)[0], self.rows(pieces)[0]) < self._tolerance
        self.model.train(training)
        return agree

    @property
    def _tolerance(self) -> float:
        return 1e-2 if self._dtype else 1e-4

    @torch.no_grad()
    def check_layer(self, layer: int) -> None:
        """Raises ModelError where the model that is cut after this layer gives other rows than `rows` trains."""
        cut = copy.deepcopy(self.model)
        keep_layers(cut, layer, "The model")
        training = self.model.training
        self.model.eval(), cut.eval()
        pieces = self.pieces(TRIAL)
        alone = copy.copy(self)
        alone.model = cut
        here, there = self.rows(pieces, [layer])[0], alone.rows(pieces)[0]
        self.model.train(training)
        if (distance := _distance(here, there)) > self._tolerance:
            raise ModelError(
                f"Rows after layer {layer} are not those of the model that is cut there (they differ by "
                f"{distance:.2g}); this family's layers cannot be trained: leave elastic.layers out."
            )


def _distance(one: Tensor, other: Tensor) -> float:
    """The largest difference of unit rows."""
    return float((normalize(one, dim=-1) - normalize(other, dim=-1)).abs().max())


@contextmanager
def _hidden_states(config: Any) -> Iterator[None]:
    """sentence-transformers hands on the states of all layers where the config says so; it is not to be saved so."""
    before = config.output_hidden_states
    config.output_hidden_states = True
    try:
        yield
    finally:
        config.output_hidden_states = before
