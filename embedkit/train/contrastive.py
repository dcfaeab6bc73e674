"""One InfoNCE whose denominator is a setting, its focal weight, and negatives mixed from others.

Papers differ in what stands in the denominator beside an anchor's own positive, and in little else. Masked scores are -inf before
the logsumexp. Scores are computed for a block of anchors at a time and once more in the backward pass, so that memory is
rows_at_once x candidates and not their square; that costs one more product of the rows, little beside a transformer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from embedkit.train.gather import gather_rows, world
from embedkit.train.heap import give_back

Denominator = Literal["own_hard", "inbatch_pos", "inbatch_pos+own_hard", "all", "all+qq+pp"]
DENOMINATORS: tuple[str, ...] = get_args(Denominator)
HIDDEN = float("-inf")


def info_nce(
    anchors: Tensor,  # (B, D) unit rows, for a cosine
    positives: Tensor,  # (B, D) row i is the positive of anchor i
    negatives: Tensor | None = None,  # (B, M, D) row i holds the hard negatives of anchor i
    *,
    temperature: float | Tensor,
    denominator: Denominator = "all",
    mixed: Tensor | None = None,  # (B, S, D) more hard negatives of anchor i, for anchor i alone
    known: Tensor | None = None,  # (B, G) bool: positive j is one of anchor i, or otherwise no negative of it
    known_negatives: Tensor | None = None,  # (B, G, M) bool: negative m of row j is no negative of anchor i
    alike_anchors: Tensor | None = None,  # (B, G) bool: anchors i and j are no negatives of each other
    alike_positives: Tensor | None = None,  # (B, G) bool: positives i and j are no negatives of each other
    margin: float | None = None,
    focal_gamma: float = 0.0,
    detach_weight: bool = True,
    gather: bool = False,
    rows_at_once: int = 256,
) -> Tensor:  # (), mean over the batch
    """-log(exp(s(q_i, p_i) / t) / Z_i) (van den Oord et al. 2018, eq. 4), s being the dot product.

    denominator: what Z_i has beside the positive. "own_hard": the anchor's own negatives (NV-Embed, stage 2); "inbatch_pos": the
    other positives (SimCSE); "inbatch_pos+own_hard": both (MoCa's code); "all": the other positives and all negatives of all
    rows (NV-Embed, stage 1; MultipleNegativesRankingLoss); "all+qq+pp": these, the other anchors against q_i, and the other
    positives against p_i (GTE, Li et al. 2023; KaLM's code).
    known, known_negatives: masked, as are the anchor and the positive of a row that `known` names in "all+qq+pp"; alike_anchors
    and alike_positives mask further ones there. G is B, or processes * B with gather. margin: a candidate that scores above
    the positive by more than this is taken for a false negative and masked, in all parts (Qwen3-Embedding, Zhang et al. 2025, uses 0.1).
    focal_gamma: rows are weighted by (1 - P_i)^gamma, P_i being exp(-loss) (KaLM-Embedding V2, arXiv 2506.20923); the weight
    has no gradient unless detach_weight is False. temperature: a tensor that requires a gradient is learned.
    gather: the candidates of all processes, see gather.py. Raises ValueError for a denominator that is not known, and for
    "own_hard" without negatives.
    """
    if denominator not in DENOMINATORS:
        raise ValueError(f"denominator={denominator!r} came; expected one of {', '.join(DENOMINATORS)}.")
    if denominator == "own_hard" and negatives is None and mixed is None:
        raise ValueError("denominator='own_hard' needs negatives: without them every loss is zero.")
    everywhere = gather_rows if gather else _same
    all_positives = everywhere(positives)
    all_anchors = everywhere(anchors) if denominator == "all+qq+pp" else None
    all_negatives = everywhere(negatives) if negatives is not None and denominator.startswith("all") else None
    first = world()[0] * len(anchors) if gather else 0

    def losses(start: int, stop: int) -> Tensor:  # (stop - start,)
        rows, own = slice(start, stop), torch.arange(first + start, first + stop, device=anchors.device)
        mine, true = anchors[rows], positives[rows]
        positive = (mine * true).sum(-1, keepdim=True)  # (b, 1)
        masked = _mask(known, rows, len(all_positives), own)  # (b, G)
        parts: list[tuple[Tensor, Tensor | None]] = []  # scores and, where some are hidden, which
        if "inbatch_pos" in denominator or denominator.startswith("all"):
            parts.append((mine @ all_positives.T, masked))
        if all_negatives is not None:
            hidden = None if known_negatives is None else known_negatives[rows].flatten(1)
            parts.append((mine @ all_negatives.flatten(0, 1).T, hidden))  # (b, G * M)
        elif negatives is not None and "own_hard" in denominator:
            hidden = None if known_negatives is None else known_negatives[rows][own - own[0], own]
            parts.append((torch.einsum("bd,bmd->bm", mine, negatives[rows]), hidden))
        if all_anchors is not None:
            parts.append((mine @ all_anchors.T, masked if alike_anchors is None else masked | alike_anchors[rows]))
            parts.append(
                (true @ all_positives.T, masked if alike_positives is None else masked | alike_positives[rows])
            )
        if mixed is not None:
            parts.append((torch.einsum("bd,bsd->bs", mine, mixed[rows]), None))
        return _cross_entropy(positive, parts, temperature, margin)

    return focal_mean(in_blocks(losses, len(anchors), rows_at_once), focal_gamma, detach_weight)


def _cross_entropy(
    positive: Tensor, parts: list[tuple[Tensor, Tensor | None]], temperature: float | Tensor, margin: float | None
) -> Tensor:
    """positive (b, 1), each part (b, n) -> (b,). Scores are divided before they are hidden: the gradient of -inf / t is NaN."""
    logits = []
    for scores, hidden in parts:
        if margin is not None:
            false = scores.detach() > positive.detach() + margin
            hidden = false if hidden is None else hidden | false
        scaled = scores / temperature
        logits.append(scaled if hidden is None else scaled.masked_fill(hidden, HIDDEN))
    true = positive / temperature
    return torch.logsumexp(torch.cat((true, *logits), dim=1), dim=1) - true[:, 0]


def _same(rows: Tensor) -> Tensor:
    return rows


def _mask(known: Tensor | None, rows: slice, candidates: int, own: Tensor) -> Tensor:
    """(b, G): `known`, and each anchor's own row."""
    diagonal = own[:, None] == torch.arange(candidates, device=own.device)
    return diagonal if known is None else diagonal | known[rows]


def in_blocks(losses: Callable[[int, int], Tensor], count: int, rows_at_once: int) -> Tensor:
    """losses(start, stop) of all rows, (count,); what a block computes is kept for the backward pass only where one is enough."""
    if count <= rows_at_once:
        return losses(0, count)

    def block(start: int) -> Tensor:
        give_back()
        return losses(start, min(start + rows_at_once, count))

    starts = range(0, count, rows_at_once)
    return torch.cat([checkpoint(block, i, use_reentrant=False, preserve_rng_state=False) for i in starts])


def focal_mean(losses: Tensor, gamma: float, detach_weight: bool = True) -> Tensor:
    """losses (B,) -> (): the mean of (1 - exp(-loss))^gamma * loss; gamma = 0 is the plain mean."""
    if gamma == 0:
        return losses.mean()
    missed = -torch.expm1(-losses)  # 1 - P
    # at P = 1 the root has no slope, and a loss of -1e-8 no root
    weights = missed.clamp(min=torch.finfo(losses.dtype).eps) ** gamma
    return ((weights.detach() if detach_weight else weights) * losses).mean()


def mix_pairs(negatives: Tensor, shares: Tensor, pairs: Tensor) -> Tensor:
    """normalize(share * n_j + (1 - share) * n_k): one synthetic negative a row (KaLM-Embedding V2, pair-wise mixing).

    negatives (B, M, D) unit rows; shares (B,), which the paper draws from Beta(2, 2); pairs (B, 2), the positions j and k.
    Returns (B, 1, D) unit rows; the gradient flows into the negatives.
    """
    rows = torch.arange(len(negatives), device=negatives.device)
    one, other = negatives[rows, pairs[:, 0]], negatives[rows, pairs[:, 1]]
    share = shares[:, None].to(negatives.dtype)
    return normalize(share * one + (1 - share) * other, dim=-1)[:, None]


def draw_pairs(present: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """(shares, pairs) for `mix_pairs`. present: (B, M) bool; a row with one negative gives it twice. generator: of the CPU, torch's
    own when left out, so that all devices have the same draws."""
    three = torch.rand(len(present), 3, generator=generator)
    shares = three.median(dim=1).values.to(present.device)  # the middle of three uniform numbers is of Beta(2, 2)
    places = torch.rand(present.shape, generator=generator).to(present.device)
    order = places.masked_fill(~present, 2.0).argsort(dim=1)
    second = order[:, 1:2] if present.shape[1] > 1 else order[:, :1]
    alone = present.sum(1, keepdim=True) < 2
    return shares, torch.cat((order[:, :1], torch.where(alone, order[:, :1], second)), dim=1)


def mix_lists(anchors: Tensor, negatives: Tensor, temperature: float | Tensor, present: Tensor | None = None) -> Tensor:
    """normalize(sum of softmax(s(q, n) / t) * n) over a row's negatives (KaLM-Embedding V2, list-wise mixing).

    anchors (B, D), negatives (B, M, D), unit rows; present (B, M) bool. Returns (B, 1, D) unit rows. The paper gives the
    weights by "query similarity" alone; the softmax is how we read it, and has no gradient.
    """
    with torch.no_grad():
        scores = torch.einsum("bd,bmd->bm", anchors, negatives) / temperature
        weights = torch.softmax(scores if present is None else scores.masked_fill(~present, HIDDEN), dim=1)
    return normalize(torch.einsum("bm,bmd->bd", weights, negatives), dim=-1)[:, None]
