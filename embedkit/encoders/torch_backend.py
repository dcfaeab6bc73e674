"""Batches through the modules of a SentenceTransformer, run by torch: every model that sentence-transformers opens.

The transformer computes in the chosen dtype; pooling, dense heads and the norm compute in float32: pooled in bf16 the
default model's rows fall to a cosine of 0.996 with float32, pooled in float32 they stay above 0.9999.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

from embedkit.encoders.backend import Batch, SetAside, compute_settings
from embedkit.encoders.foreign import FAILED, STEP, as_model_error, quiet, said
from embedkit.encoders.images import Reading, rgb
from embedkit.encoders.model_files import NO_LIMIT
from embedkit.encoders.pieces import Piece
from embedkit.encoders.routes import readers, ways
from embedkit.encoders.timing import bfloat16_wins
from embedkit.errors import DataError, is_out_of_memory
from embedkit.types import Vectors

T = TypeVar("T")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHORT = 512  # tokens
OWN_READING = ("query_expansion_config", "query_length", "document_length", "processing_kwargs")  # of a Transformer
DECODERS = 8  # threads that prepare batches of images, at most; each holds one
Features = dict[str, Any]
PARENT = os.getpid()  # or this process itself, unless it was forked later


def set_threads(count: int) -> None:
    """Of torch, in the whole process; in a forked one always one: OpenMP would wait for the parent's threads, for ever."""
    torch.set_num_threads(count if os.getpid() == PARENT else 1)


os.register_at_fork(after_in_child=lambda: set_threads(1))


class TorchBackend:
    """A loaded SentenceTransformer, whose transformer it casts to `dtype`."""

    def __init__(
        self,
        model: Any,  # sentence_transformers.SentenceTransformer, weights as stored
        *,
        dtype: str,
        batch_tokens: int,
        reopen: Callable[[], Any],  # the same model once more, weights as stored
    ) -> None:
        self._model, self._dtype, self._batch_tokens, self._reopen = model.eval(), dtype, batch_tokens, reopen
        self.tokenizer, self._pad = fast_tokenizer(model), pad_id(model)
        self._reading = Reading.of(model)
        self._processing = threading.Lock()  # a tokenizer cannot be used by two threads at once
        cast(model, DTYPES[dtype])
        if model.device.type == "cpu" and self._reading is None:
            take_plain_attention(model)
        self.compute = compute_settings(
            backend="torch",
            device=model.device.type,
            dtype=dtype,
            threads=torch.get_num_threads(),
            batch_tokens=batch_tokens,
            python=platform.python_version(),
            **versions(),
            **({} if self._reading is None else {"pillow": pillow_version()}),
        )

    def in_float32(self) -> TorchBackend:
        if self._dtype == "float32":
            return self
        model = self._reopen().to(self._model.device)
        return TorchBackend(model, dtype="float32", batch_tokens=self._batch_tokens, reopen=self._reopen)

    def run(
        self, batches: Iterable[Batch[T]], *, hurried: bool = False
    ) -> Iterator[tuple[Batch[T], Vectors | Exception]]:
        """See Backend."""
        for batch, features in self._ahead(batches):
            result: Vectors | Exception
            with as_model_error(FAILED, STEP):
                try:
                    result = self._rows(batch, features())
                except SetAside as error:
                    result = error
                except Exception as error:
                    if is_out_of_memory(error):
                        result = error.with_traceback(None)  # the frames would keep the batch's tensors alive
                    else:
                        result = self._unread(batch, error)
            if isinstance(result, Exception) and self._model.device.type == "cuda":
                torch.cuda.empty_cache()
            yield batch, result

    def _ahead(self, batches: Iterable[Batch[T]]) -> Iterator[tuple[Batch[T], Callable[[], Features]]]:
        """Each batch, in order, and what gives its features. Where the model reads images these are made in threads, of as
        many batches as there are threads, while a batch before them is computed."""
        if self._reading is None:
            yield from ((batch, functools.partial(self._features, batch)) for batch in batches)
            return
        threads = min(torch.get_num_threads(), DECODERS)
        waiting: deque[tuple[Batch[T], Callable[[], Features]]] = deque()
        with ThreadPoolExecutor(threads, "decoding") as pool:
            try:
                for batch in batches:
                    waiting.append((batch, pool.submit(self._features, batch).result))
                    if len(waiting) > threads:
                        yield waiting.popleft()
                while waiting:
                    yield waiting.popleft()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _features(self, batch: Batch[Any]) -> Features:
        """What the model's modules take, on the CPU. Raises SetAside where images cannot be read."""
        if self.tokenizer is not None:
            return {**padded(batch.pieces, self._pad), "modality": "text"}  # a Router may go by it
        pieces = batch.pieces
        texts: list[Any] = [piece.text.removeprefix(batch.prompt) for piece in pieces]
        if self._reading is None:
            return self._processed(batch, texts)
        inputs: list[Any] = [{"text": text} for text in texts]  # a bare string may be taken for an image's address
        reasons = {}
        for place, piece in enumerate(pieces):
            if piece.picture is not None:
                try:
                    inputs[place] = _pictured(piece, texts[place])
                except DataError as error:
                    reasons[place] = str(error)
        if reasons:
            raise SetAside(reasons)
        try:
            return self._processed(batch, inputs)
        except ValueError as error:  # an image of a shape that the processor does not take
            if pieces[0].picture is None or not (reasons := self._refused(batch, inputs)):
                raise
            raise SetAside(reasons) from error

    def _refused(self, batch: Batch[Any], inputs: list[Any]) -> dict[int, str]:
        """Which inputs the model's processor does not take on their own: place -> why."""
        reasons = {}
        for place, item in enumerate(inputs):
            try:
                self._processed(batch, [item])
            except ValueError as error:
                said = next(iter(str(error).splitlines()), type(error).__name__)
                reasons[place] = f"the model's processor refuses {batch.pieces[place]}: {said}"
        return reasons

    def _processed(self, batch: Batch[Any], inputs: list[Any]) -> Features:
        """By the model's own processor, one thread at a time but for images alone, which no tokenizer sees."""
        alone = batch.pieces[0].kind == "image" and "message" not in self._model[0].modality_config
        with contextlib.nullcontext() if alone else self._processing:
            features: Features = self._model.preprocess(inputs, prompt=batch.prompt or None, task=batch.kind)
        return features

    @torch.inference_mode()
    def _rows(self, batch: Batch[Any], features: Features) -> Vectors:
        model = self._model
        moved = {name: self._moved(x) if isinstance(x, torch.Tensor) else x for name, x in features.items()}
        with attention_without_plans(model.device):
            found = model(moved, task=batch.kind)["sentence_embedding"]
        rows: Vectors = found.float().cpu().numpy()
        return rows

    def _unread(self, batch: Batch[Any], error: Exception) -> SetAside:
        """Which texts of a batch that failed are at fault: some families read none of one or two tokens. Raises the error where all
        of several are, or none is, and where the device is what fails."""
        if isinstance(error, torch.AcceleratorError) or batch.pieces[0].picture is not None:
            raise error
        reasons = {}
        for place, piece in enumerate(batch.pieces):
            one = Batch([piece], batch.prompt, batch.kind, None)
            try:
                self._rows(one, self._features(one))
            except Exception as alone:
                reasons[place] = f"the model does not read {piece} ({said(alone)})"
        if not reasons or len(reasons) == len(batch.pieces) > 1:
            raise error
        return SetAside(reasons)

    def _moved(self, feature: torch.Tensor) -> torch.Tensor:
        """To the model's device, pixels in the dtype that it computes in."""
        dtype = DTYPES[self._dtype] if feature.is_floating_point() else feature.dtype
        return feature.to(self._model.device, dtype)


def _pictured(piece: Piece, text: str) -> dict[str, Any]:
    """The input that sentence-transformers takes for an image, in the order in which text and image came."""
    picture = piece.picture
    assert picture is not None
    image = rgb(picture)
    if picture.text is None:
        return {"image": image}
    return {"text": text, "image": image} if picture.text_first else {"image": image, "text": text}


def fast_tokenizer(model: Any) -> Any:
    """The `tokenizers.Tokenizer` of a model whose inputs are nothing but its ids; None where the model's own preprocessing
    does more: chat templates, images, slow tokenizers, static embeddings, limits of a kind of input, and FlashAttention's sequences
    without padding."""
    first = model[0]
    text_only = list(getattr(first, "modality_config", ())) == ["text"] and hasattr(first, "auto_model")
    if not text_only or any(getattr(first, name, None) for name in OWN_READING) or flash_attention(first.auto_model):
        return None
    return getattr(model.tokenizer, "backend_tokenizer", None)


def flash_attention(transformer: Any) -> bool:
    return "flash" in str(getattr(transformer.config, "_attn_implementation", ""))


def pad_id(model: Any) -> int:
    """What the model is padded with: some families look for it."""
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    for place in (getattr(model, "tokenizer", None), config):
        if isinstance(found := getattr(place, "pad_token_id", None), int) and found >= 0:
            return found
    return 0


def truncation_side(model: Any) -> str:
    """Where a text that is too long loses tokens: "left" or "right"."""
    return str(getattr(model.tokenizer, "truncation_side", "right"))


def padded(pieces: list[Piece], pad: int) -> dict[str, Any]:
    """Features of a SentenceTransformer: int64 (B, T), padding on the right, which every family reads alike. pad: see `pad_id`."""
    lengths = torch.tensor([len(piece.ids or ()) for piece in pieces])
    positions = torch.arange(int(lengths.max()))
    present = positions < lengths[:, None]
    ids = torch.full(present.shape, pad, dtype=torch.int64)
    ids[present] = torch.from_numpy(np.concatenate([np.asarray(piece.ids, dtype=np.int64) for piece in pieces]))
    firsts = torch.tensor([piece.first for piece in pieces])
    features = {"input_ids": ids, "attention_mask": present.long()}
    if firsts.any():
        features["pooling_mask"] = (present & (positions >= firsts[:, None])).long()
    return features


@contextlib.contextmanager
def attention_without_plans(device: torch.device) -> Iterator[None]:
    """Without cuDNN's attention, which torch takes for half precision with a mask on some GPUs, and which builds a plan for every shape
    that it has not met: batches of a token budget have a new one nearly every time. The switch is of the whole process."""
    before = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(before and device.type != "cuda")
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def take_plain_attention(model: Any) -> None:
    """On a CPU the fused attention is a tenth slower for short texts (of images it is as much faster); for long ones it saves
    the (T, T) scores."""
    transformer = getattr(model[0], "auto_model", None)
    fused = str(getattr(getattr(transformer, "config", None), "_attn_implementation", "")) == "sdpa"
    if fused and (model.max_seq_length or NO_LIMIT) <= SHORT:
        with quiet():  # some families take no other, and say so
            transformer.set_attn_implementation("eager")  # type: ignore[union-attr]


def cast(model: Any, dtype: torch.dtype) -> None:
    """The transformer's weights in `dtype`, everything after it in float32.

    Only parameters and stored buffers are cast: rotary frequencies, which are computed and not stored, lose their
    precision in bf16. What the model's class asks to keep in float32 is kept.
    """
    for way in ways(model.children()):
        for module in way[1:]:
            module.float()
    for reader in readers(model):
        _cast_reader(reader, dtype)


def _cast_reader(reader: Any, dtype: torch.dtype) -> None:
    transformer = getattr(reader, "auto_model", None)
    if transformer is None:
        reader.float()
        return
    kept = tuple(getattr(transformer, "_keep_in_fp32_modules", None) or ())
    kept += tuple(getattr(transformer, "_keep_in_fp32_modules_strict", None) or ())
    stored = set(transformer.state_dict())
    for name, tensor in (*transformer.named_parameters(), *transformer.named_buffers()):
        if name in stored and tensor.is_floating_point():
            wanted = torch.float32 if any(part in name.split(".") for part in kept) else dtype
            tensor.data = tensor.data.to(wanted)
    reader.register_forward_hook(_ready_for_pooling)


def _ready_for_pooling(module: Any, arguments: Any, features: dict[str, Any]) -> dict[str, Any]:
    """Float32 states; from here on the mask is of the tokens that are pooled."""
    for key in ("token_embeddings", "sentence_embedding"):
        if key in features:
            features[key] = features[key].float()
    if "pooling_mask" in features:
        features["attention_mask"] = features.pop("pooling_mask")
    return features


def default_dtype(place: torch.device) -> str:
    """bfloat16 where the GPU has units for it or this CPU multiplies it faster, else float32."""
    if place.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if place.type == "cpu" and bfloat16_is_fast() else "float32"


@functools.cache
def bfloat16_is_fast() -> bool:
    """Whether this CPU multiplies bfloat16 matrices faster than float32 ones, by trying: where it has no units for them
    they are a hundred times slower. Costs some 30 ms, once a process.
    """
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(64, 384, generator=generator), torch.randn(1536, 384, generator=generator)

    def multiplication(dtype: str) -> Callable[[], Any]:
        one, other = left.to(DTYPES[dtype]), right.to(DTYPES[dtype])
        return lambda: torch.nn.functional.linear(one, other)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return bfloat16_wins(multiplication)
    finally:
        torch.set_num_threads(threads)


def pillow_version() -> str:
    """What decodes and resizes images may move the last bits of a row."""
    import PIL

    return str(PIL.__version__)


def versions() -> dict[str, str]:
    """Of the libraries that open and run a model here."""
    import sentence_transformers
    import transformers

    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentence-transformers": sentence_transformers.__version__,
    }
