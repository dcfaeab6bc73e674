"""The profile "fast": matrix products in int8, on ranges calibrated with the user's own texts.

Weights are symmetric int8 with one scale an output channel, what flows into them has 8 bits and one range a place (Jacob et
al. 2018). Channels that swing far would make that range coarse for all others, so each is scaled down first and its weights up by
as much (SmoothQuant, Xiao et al. 2023, eq. 4). Attention scores, norms and the residual stream stay as they are. Cost: one
pass of the model in float32 over the texts.
"""

from __future__ import annotations

import base64
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from embedkit.encoders.backend import Batch
from embedkit.encoders.batches import token_batches
from embedkit.encoders.bert_graph import BertGraph, op, openvino
from embedkit.encoders.model_files import ModelFiles
from embedkit.encoders.opened import Opened
from embedkit.encoders.openvino_backend import compiled, padded
from embedkit.encoders.pieces import Piece, Tokenization
from embedkit.encoders.text_encoder import TextEncoder
from embedkit.errors import ModelError, UsageError
from embedkit.types import Array, Vectors, is_unicode
from embedkit.vectors import unit_rows

FAST = "fast"
TEXTS, FEWEST = 256, 16  # that calibrate: half set the ranges, half measure the agreement
LEAST_COSINE = 0.99  # mean, with float32
MIGRATION = 0.7  # how much of a channel's swing moves into its weights; 0.5 to 1 were tried, see eval/README.md
STEPS = 8  # of a factor of two, in which scales are stored
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """What the profile knows of a model's activations, place by place: the inputs of its matrix products."""

    ranges: tuple[tuple[float, float], ...]  # of the scaled activations, 0 among them
    exponents: Array  # int8, of all places one after the other: 2 ** (exponent / STEPS) is the scale of a channel

    def stored(self) -> dict[str, Any]:
        """As JSON can hold it, and as `load(profile=...)` takes it."""
        return {
            "name": FAST,
            "ranges": [list(pair) for pair in self.ranges],
            "exponents": base64.b64encode(self.exponents.tobytes()).decode(),
        }

    @classmethod
    def of(cls, stored: Mapping[str, Any], files: ModelFiles) -> Calibration:
        """Raises UsageError for what `stored` did not make, or made for another model."""
        widths = [width for _, width in places(files)]
        try:
            ranges = tuple((float(low), float(high)) for low, high in stored["ranges"])
            exponents = np.frombuffer(base64.b64decode(stored["exponents"]), dtype=np.int8)
        except (KeyError, TypeError, ValueError):
            ranges, exponents = (), np.zeros(0, dtype=np.int8)
        usable = all(low <= 0 <= high and 0 < high - low < np.inf for low, high in ranges)
        if stored.get("name") != FAST or len(ranges) != len(widths) or len(exponents) != sum(widths) or not usable:
            raise UsageError(
                f"The stored profile does not belong to {files.folder.name}; give the one that its encoder's settings hold, or "
                f"profile={FAST!r} with calibrate=TEXTS."
            )
        return cls(ranges, exponents)

    def by_place(self, files: ModelFiles) -> dict[str, tuple[float, float, Array]]:
        """Place -> low, high and the scales (width,) of its channels."""
        names, widths = zip(*places(files), strict=True)
        parts = np.split(np.exp2(self.exponents.astype(np.float32) / STEPS), np.cumsum(widths)[:-1])
        return {name: (*pair, scales) for name, pair, scales in zip(names, self.ranges, parts, strict=True)}


def open_profile(
    profile: Any,  # FAST, or what an encoder's settings hold
    calibrate: Iterable[str] | None,
    files: ModelFiles,
    opened: Callable[[Any, str | None], Opened],  # by what builds the graph and by dtype; None: as asked for
    encoder: Callable[..., TextEncoder],  # of what was opened, and of the profile to store
) -> TextEncoder:
    """Raises UsageError where profile and texts do not belong together, ModelError where the rows are far from float32's."""

    def fast(calibration: Calibration) -> TextEncoder:
        return encoder(opened(quantized_graph(calibration), None), calibration.stored())

    if isinstance(profile, Mapping) and calibrate is None:
        return fast(Calibration.of(profile, files))
    if profile != FAST or calibrate is None:
        raise UsageError(
            f"profile={profile!r:.40} came {'without' if calibrate is None else 'with'} texts to calibrate with; give "
            f"profile={FAST!r} and calibrate=TEXTS, or alone the profile that an encoder's settings hold."
        )
    texts = _first_texts(calibrate)
    plain = opened(None, "float32")
    exact = encoder(plain)
    pieces = cast(Tokenization, plain.tokenization).pieces(texts[::2], exact.prompts["document"])
    threads = int(exact.compute["threads"])
    chosen = fast(calibrated(files, pieces, threads=threads, batch_tokens=plain.batch_tokens))
    logger.info("%s", checked_agreement(exact.name, _rows(exact, texts[1::2]), _rows(chosen, texts[1::2])))
    return chosen


def _rows(encoder: TextEncoder, texts: list[str]) -> Vectors:
    """As `encode`, without a word about long texts."""
    (encoded,) = encoder.encode_windows([texts])
    return encoded.rows


def _first_texts(calibrate: Iterable[str]) -> list[str]:
    """The different ones among the first. Raises UsageError for what is no text, or too few."""
    if not isinstance(calibrate, Iterable):
        raise UsageError(f"calibrate={calibrate!r:.40} came; expected an iterable of strings.")
    first = [calibrate] if isinstance(calibrate, str) else list(itertools.islice(calibrate, TEXTS))
    if odd := [text for text in first if not isinstance(text, str) or not is_unicode(text)]:
        raise UsageError(
            f"Among the texts to calibrate with stands {ascii(odd[0])[:40]}; expected strings of whole characters."
        )
    texts = [text for text in dict.fromkeys(first) if text.strip()]
    if len(texts) < FEWEST:
        raise UsageError(f"{len(texts)} different texts came to calibrate with; expected at least {FEWEST}.")
    return texts


def places(files: ModelFiles) -> list[tuple[str, int]]:
    """Where a layer's activations meet weights, and how many channels they have there; query, key and value share one."""
    width, inner = int(files.config["hidden_size"]), int(files.config["intermediate_size"])
    parts = {
        "attention.self": width,
        "attention.output.dense": width,
        "intermediate.dense": width,
        "output.dense": inner,
    }
    layers = range(int(files.config["num_hidden_layers"]))
    return [(f"encoder.layer.{layer}.{part}", channels) for layer in layers for part, channels in parts.items()]


def _place(linear: str) -> str:
    """Of the linear layer of this name."""
    before, _, last = linear.rpartition(".")
    return before if last in ("query", "key", "value") else linear


def quantized_graph(calibration: Calibration) -> Callable[[ModelFiles], Any]:
    """What builds the graph of a model, its products in int8."""
    return lambda files: _QuantizedGraph(files, calibration).model()


class _QuantizedGraph(BertGraph):
    """FakeQuantize says which products are int8; OpenVINO's low-precision passes then make them so."""

    def __init__(self, files: ModelFiles, calibration: Calibration) -> None:
        super().__init__(files)
        self.calibrated = calibration.by_place(files)
        self.quantized: dict[str, Any] = {}  # place -> its activations

    def linear(self, states: Any, name: str) -> Any:
        place = _place(name)
        low, high, scales = self.calibrated[place]
        if place not in self.quantized:
            scaled = op.multiply(states, op.constant(1 / scales))
            self.quantized[place] = _fake_quantize(scaled, np.float32(low), np.float32(high), 256)
        weight = np.asarray(self.tensors[f"{name}.weight"], dtype=np.float32) * scales
        largest = np.maximum(np.abs(weight).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        rounded = _fake_quantize(op.constant(weight), -largest, largest, 255)
        return op.add(op.matmul(self.quantized[place], rounded, False, True), self.tensor(f"{name}.bias"))


def _fake_quantize(values: Any, low: Any, high: Any, levels: int) -> Any:
    ends = op.constant(low), op.constant(high)
    return op.fake_quantize(values, *ends, *ends, levels)


class _WatchedGraph(BertGraph):
    """Remembers what flows into each place."""

    def __init__(self, files: ModelFiles) -> None:
        super().__init__(files)
        self.watched: dict[str, Any] = {}

    def linear(self, states: Any, name: str) -> Any:
        self.watched.setdefault(_place(name), states)
        return super().linear(states, name)


def calibrated(files: ModelFiles, pieces: Sequence[Piece], *, threads: int, batch_tokens: int) -> Calibration:
    """From the extremes that each channel reaches over all tokens of the pieces, in float32."""
    lows, highs = _extremes(files, pieces, threads, batch_tokens)
    ranges, exponents = [], []
    for place, low, high in zip(places(files), lows, highs, strict=True):
        own = _exponents(files, place[0], np.maximum(-low, high))
        scales = np.exp2(own.astype(np.float32) / STEPS)
        ranges.append(_rounded(min(float((low / scales).min()), 0.0), max(float((high / scales).max()), 0.0)))
        exponents.append(own)
    return Calibration(tuple(ranges), np.concatenate(exponents))


def _extremes(
    files: ModelFiles, pieces: Sequence[Piece], threads: int, batch_tokens: int
) -> tuple[list[Array], list[Array]]:
    """Of each place, the smallest and the largest value of each channel."""
    graph = _WatchedGraph(files)
    parameters = graph.model().get_parameters()
    watching = openvino.Model([graph.watched[place] for place, _ in places(files)], parameters, "watching")
    request = compiled(watching, "float32", threads, "LATENCY").create_infer_request()
    lows = [np.full(width, np.inf, dtype=np.float32) for _, width in places(files)]
    highs = [-low for low in lows]
    for chosen in token_batches([piece.length for piece in pieces], batch_tokens):
        ids, mask, weights = padded(Batch([pieces[i] for i in chosen], "", "document", None), files.pooling)
        request.infer({"ids": ids, "mask": mask, "weights": weights})
        for i, (low, high) in enumerate(zip(lows, highs, strict=True)):
            states = request.get_output_tensor(i).data[mask > 0]
            np.minimum(low, states.min(axis=0), out=low)
            np.maximum(high, states.max(axis=0), out=high)
    return lows, highs


def _exponents(files: ModelFiles, place: str, swing: Array) -> Array:
    """(width,) int8: of the scales that share each channel's swing out between activations and weights."""
    parts = [f"{place}.{part}" for part in ("query", "key", "value")] if place.endswith("self") else [place]
    weights = [np.abs(np.asarray(files.tensors[f"{part}.weight"], dtype=np.float32)).max(axis=0) for part in parts]
    swings, weight = (np.log2(np.maximum(some, some.max() * 1e-4 + 1e-30)) for some in (swing, np.max(weights, axis=0)))
    scale = MIGRATION * swings - (1 - MIGRATION) * weight
    exponents: Array = np.clip(np.round(STEPS * (scale - scale.mean())), -127, 127).astype(np.int8)
    return exponents


def _rounded(low: float, high: float) -> tuple[float, float]:
    """To four digits, so that the last bits of another machine's float32 do not make another space."""
    low, high = float(f"{low:.4g}"), float(f"{high:.4g}")
    return (low, high) if high > low else (0.0, 1.0)


def agreement(exact: Vectors, fast: Vectors) -> tuple[float, float, float]:
    """Mean and smallest cosine of two encodings of the same texts, and for how many texts the nearest other one is the same."""
    exact, fast = unit_rows(exact), unit_rows(fast)
    cosines = np.einsum("ij,ij->i", exact, fast)
    nearest = []
    for rows in (exact, fast):
        similar = rows @ rows.T
        np.fill_diagonal(similar, -np.inf)
        nearest.append(similar.argmax(axis=1))
    return float(cosines.mean()), float(cosines.min()), float((nearest[0] == nearest[1]).mean())


def checked_agreement(name: str, exact: Vectors, fast: Vectors) -> str:
    """The agreement, in one line. Raises ModelError where it is below LEAST_COSINE."""
    mean, least, nearest = agreement(exact, fast)
    line = (
        f"{name} in int8 against float32, on {len(exact)} texts held out: mean cosine {mean:.4f}, smallest {least:.4f}, the "
        f"same nearest neighbour for {nearest:.0%}."
    )
    if not mean >= LEAST_COSINE:
        raise ModelError(
            f"{line} A mean cosine of at least {LEAST_COSINE} is expected; leave profile={FAST!r} out, or calibrate with texts more "
            f"like those that will come."
        )
    return line


@functools.cache
def int8_is_exact() -> bool:
    """Whether this CPU adds int8 products up without overflow, by trying: those without VNNI saturate pairs of them at 16 bits."""
    rows = op.parameter([4, 64], np.float32, name="rows")
    quantized = _fake_quantize(rows, np.float32(0), np.float32(255), 256)
    weight = _fake_quantize(op.constant(np.full((8, 64), 127, np.float32)), np.float32(-127), np.float32(127), 255)
    model = openvino.Model([op.matmul(quantized, weight, False, True)], [rows], "saturation")
    request = compiled(model, "float32", 1, "LATENCY").create_infer_request()
    (found,) = request.infer({"rows": np.full((4, 64), 255, dtype=np.float32)}).values()
    return bool(np.allclose(found, 255 * 127 * 64))
