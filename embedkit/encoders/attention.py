"""Which way attention runs in a transformer, found by trying, and what its config says of it.

All tokens but the first are changed: where attention is causal, the state of the first stays as it was. Tried on texts alone
and beside a longer one, for PyTorch's fused attention goes by a flag of the layer where nothing is padded and by the mask
where something is, and the two can differ. Cost: two forward passes of a few short rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

MOVED = 1e-6  # of the largest value: a causal state stays the same to the bit, any other moves by far more
SHORT, LONG = 8, 12  # tokens


class Attention(NamedTuple):
    """What the config declares and what runs."""

    declared: str | None  # "bidirectional" or "causal"; None: no setting says
    alone: float  # how far the first token's state moves, as a share of its largest value, in a batch without padding
    padded: float  # the same beside a longer row

    @property
    def runs(self) -> str:
        return direction(self.alone)


def direction(moved: float) -> str:
    return "bidirectional" if moved > MOVED else "causal"


def attention_of(transformer: Any) -> Attention | None:
    """transformer: of Hugging Face. None where it does not take token ids, or gives no states of them."""
    try:
        return _tried(transformer)
    except Exception:  # other inputs, other outputs, a dtype that its attention refuses
        return None


def _tried(transformer: Any) -> Attention | None:
    import torch

    table = transformer.get_input_embeddings()
    size = getattr(table, "num_embeddings", 0)
    if size < 4 or not hasattr(transformer.config, "model_type"):
        return None
    padding = getattr(transformer.config, "pad_token_id", None)
    known = torch.tensor([i for i in range(size) if i != padding])  # some families count positions by that id
    drawn = known[torch.randint(len(known), (3, LONG), generator=torch.Generator().manual_seed(0))]
    drawn[1, 0] = drawn[0, 0]
    mask = torch.ones_like(drawn)
    mask[:2, SHORT:] = 0
    device = table.weight.device

    def moved(ids: torch.Tensor, present: torch.Tensor) -> float:
        with torch.inference_mode():
            output = transformer(input_ids=ids.to(device), attention_mask=present.to(device))
        first = output.last_hidden_state[:2, 0].float()  # (2, H)
        return float((first[0] - first[1]).abs().max() / first.abs().max().clamp(min=1e-12))

    alone = moved(drawn[:2, :SHORT], mask[:2, :SHORT])
    return Attention(declared_direction(transformer), alone, moved(drawn, mask))


def declared_direction(transformer: Any) -> str | None:
    """ "bidirectional" or "causal", as a setting of the config or the family says; None where neither does, as with most
    decoders."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    config = transformer.config
    parts = [part for part in (config, getattr(config, "text_config", None)) if part is not None]
    causal = [getattr(part, "is_causal", None) for part in parts]
    if False in causal or any(getattr(part, "use_bidirectional_attention", None) for part in parts):
        return "bidirectional"
    if True in causal or getattr(config, "is_decoder", False):
        return "causal"
    family = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "bidirectional" if family or type(transformer).__name__.endswith("EncoderModel") else None
