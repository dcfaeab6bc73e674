"""Texts of many lengths through a transformer without padding, on every device.

The tokens of all texts follow each other in one row: (1, T). All that works on tokens one by one (embeddings, projections, norms: nearly
all of the work on short texts) then has T rows and not B x L. Attention alone sees (B, L), its padding masked; where L is about
the same for all, as in batches sorted by length, that costs little. For the families whose positions can be given and whose
attention is of every token to every token; that rows are the same as padded ones is tried once a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from embedkit.encoders.model_files import FAMILIES, position_offset
from embedkit.encoders.pieces import Piece

NAME = "embedkit_packed"  # no masks are made for attention of a name that transformers does not know


class Layout:
    """Which token of which text each of T tokens is."""

    def __init__(self, pieces: Sequence[Piece], device: torch.device) -> None:
        lengths = torch.tensor([len(piece.ids or ()) for piece in pieces])
        self.shape = (len(pieces), int(lengths.max()))
        self.present = (torch.arange(self.shape[1]) < lengths[:, None]).to(device)  # (B, L)
        self.places = self.present.flatten().nonzero()[:, 0]  # (T,) positions among B * L
        self.full = len(self.places) == self.present.numel()

    def padded(self, tokens: Tensor) -> Tensor:
        """(T, ...) -> (B, L, ...), zero where there is no token."""
        rest = tokens.shape[1:]
        if self.full:
            return tokens.view(*self.shape, *rest)
        empty = tokens.new_zeros((self.present.numel(), *rest))
        return empty.index_copy(0, self.places, tokens).view(*self.shape, *rest)

    def packed(self, padded: Tensor) -> Tensor:
        """(B, L, ...) -> (T, ...)."""
        return padded.flatten(0, 1) if self.full else padded.flatten(0, 1)[self.places]


LAYOUT: ContextVar[Layout] = ContextVar("layout")


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, _: Tensor | None, *, dropout: float = 0.0, **settings: Any
) -> tuple[Tensor, None]:
    """(1, heads, T, d) each -> (1, T, heads, d), as transformers' attention interface has it."""
    layout, on_cpu = LAYOUT.get(), query.device.type == "cpu"
    # on a CPU the kernel's backward pass in bfloat16 takes five times as long as the one in float32
    dtype = torch.float32 if on_cpu and not dropout else query.dtype
    parts = (layout.padded(one[0].transpose(0, 1).to(dtype)) for one in (query, key, value))
    q, k, v = (one.transpose(1, 2) for one in parts)  # (B, heads, L, d)
    mask = None if layout.full else layout.present[:, None, None, :]
    with torch.autocast(query.device.type, enabled=False):  # it would make bfloat16 of them again
        if on_cpu and dropout:
            mixed = attention_with_dropout(q, k, v, mask, dropout, settings.get("scaling"))
        else:
            mixed = scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, scale=settings.get("scaling")
            )
    return layout.packed(mixed.transpose(1, 2))[None].to(query.dtype), None


def attention_with_dropout(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scale: float | None
) -> Tensor:
    """scaled_dot_product_attention of (B, heads, L, d), as torch defines it. On a CPU torch has no kernel for it with dropout: it
    multiplies in float32 whatever comes, and draws a number for each weight, which takes twice as long as this."""
    scores = ((q * (scale or q.shape[-1] ** -0.5)) @ k.transpose(-1, -2)).float()
    if mask is not None:
        scores.masked_fill_(~mask, -math.inf)
    weights: Tensor = Dropout.apply(scores.softmax(-1), dropout)  # type: ignore[no-untyped-call]
    return weights.to(v.dtype) @ v


class Dropout(torch.autograd.Function):
    """Dropout whose share is rounded to 1/65,536: a random number of 64 bits is enough for four values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, share: float) -> Tensor:
        steps, dropped = 1 << 16, round(share * (1 << 16))
        count, whole = values.numel(), torch.iinfo(torch.int64)
        bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(whole.min, None)
        gone = bits.view(torch.int16)[:count].view(values.shape) < dropped - steps // 2
        ctx.save_for_backward(gone)
        ctx.factor = steps / (steps - dropped)
        return values.mul(ctx.factor).masked_fill_(gone, 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gone,) = ctx.saved_tensors
        return gradients[0].mul(ctx.factor).masked_fill_(gone, 0), None


def can_be_packed(transformer: Any) -> bool:
    """Whether the family is one of those that this is made for."""
    config = transformer.config
    return config.model_type in FAMILIES and not getattr(config, "is_decoder", False)


def packed_features(pieces: Sequence[Piece], layout: Layout, config: Any) -> dict[str, Tensor]:
    """What the transformer reads: all (1, T) int64."""
    ids = torch.tensor([one for piece in pieces for one in piece.ids or ()])[None]
    positions = torch.cat([torch.arange(len(piece.ids or ())) for piece in pieces])[None]
    positions = positions + position_offset(vars(config))
    device = layout.places.device
    return {
        "input_ids": ids.to(device),
        "position_ids": positions.to(device),
        "token_type_ids": torch.zeros_like(ids).to(device),
    }


@contextmanager
def packed_attention(config: Any, layout: Layout) -> Iterator[None]:
    """The transformer's attention is `attention` inside the block."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)
    before, token = config._attn_implementation, LAYOUT.set(layout)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        LAYOUT.reset(token)
