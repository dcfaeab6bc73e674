"""An Encoder over the modules of a SentenceTransformer, run by torch.

The transformer computes in the chosen dtype; pooling, dense heads and the norm compute in float32: pooled in bf16 the
default model's rows fall to a cosine of 0.996 with float32, pooled in float32 they stay above 0.9999.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm

from embedkit.encoders.batches import token_batches
from embedkit.encoders.fingerprint import describe_modules, fingerprint
from embedkit.encoders.prompts import named_prompt, resolve_prompts
from embedkit.errors import ModelError, Stopped, UsageError
from embedkit.types import Kind, Vectors, is_unicode
from embedkit.vectors import check_dim, truncate

WINDOW = 8192  # texts tokenized and sorted at once
NO_LIMIT = 1e9  # tokenizers without a limit give 1e30, static embeddings infinity
logger = logging.getLogger(__name__)


class TorchEncoder:
    """What `embedkit.load` returns. Made from a loaded SentenceTransformer, whose transformer it casts to `dtype`.

    Attributes that are settled at load: name, dim, max_tokens (None: no limit), similarity, unit (rows have length 1),
    prompts (kind -> literal prompt), fingerprint, compute, settings.
    """

    def __init__(
        self,
        model: Any,  # sentence_transformers.SentenceTransformer, weights as stored
        *,
        name: str,
        dtype: torch.dtype,
        batch_tokens: int,
        dim: int | None = None,
        prompt_names: Mapping[Kind, str] | None = None,
        compute: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.similarity: str = model.similarity_fn_name
        self.unit = self.similarity == "cosine" or any(
            type(module).__name__ == "Normalize" for module in model.children()
        )
        limit = model.max_seq_length
        self.max_tokens = int(limit) if limit and limit < NO_LIMIT else None
        self.stored_prompts: dict[str, str] = dict(model.prompts)
        self.default_prompt = self.stored_prompts.get(model.default_prompt_name or "", "")  # for inputs without a role
        self.prompts = resolve_prompts(self.stored_prompts, model.default_prompt_name, prompt_names or {})
        self.compute = dict(compute or {})
        self.settings = dict(settings or {})
        self._model, self._batch_tokens = model.eval(), batch_tokens
        width = model.get_embedding_dimension()
        if dim is not None:
            check_dim(dim, width)
        self.dim: int = dim or width
        self.fingerprint = self._fingerprint()
        self._said_no_prompt = False
        _cast(model, dtype)

    def _fingerprint(self) -> str:
        return fingerprint(
            {
                "modules": describe_modules(self._model),
                "max_tokens": self.max_tokens,
                "prompts": self.prompts,
                "unit": self.unit,
                "similarity": self.similarity,
                "dim": self.dim,
            }
        )

    def encode_query(self, inputs: Iterable[str] | str, **options: Any) -> Vectors:
        """`encode` with kind="query"."""
        return self.encode(inputs, kind="query", **options)

    def encode_document(self, inputs: Iterable[str] | str, **options: Any) -> Vectors:
        """`encode` with kind="document"."""
        return self.encode(inputs, kind="document", **options)

    def encode(
        self,
        inputs: Iterable[str] | str,
        *,
        kind: Kind = "document",
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
    ) -> Vectors:
        """float32 (len(inputs), dim), in input order; one string counts as one text and gives (1, dim).

        The keywords are those of sentence-transformers. prompt: the literal text in front, instead of the kind's own;
        prompt_name: one that the model stores. batch_size: at most so many texts a batch (the token budget holds as well).
        normalize_embeddings: None gives unit rows where the model normalises or compares by cosine. truncate_dim: the
        first so many columns, at unit length again where the rows were. convert_to_tensor, or
        convert_to_numpy=False: the same rows as one tensor.
        Raises UsageError for what is not a string, with its position; ModelError when a row comes out as NaN or infinite.
        """
        texts = _texts(inputs)
        if kind not in ("query", "document"):
            raise UsageError(f"kind={kind!r} came; expected 'query' or 'document'.")
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch_size={batch_size} came; expected at least 1.")
        unit = self.unit if normalize_embeddings is None else normalize_embeddings
        dim = self.dim if truncate_dim is None else truncate_dim
        check_dim(dim, self.dim)
        literal = self._literal_prompt(kind, prompt, prompt_name)
        rows = np.zeros((len(texts), dim), dtype=np.float32)  # what has no token at all stays zero
        with tqdm(total=len(texts), unit="text", disable=not show_progress_bar) as bar:
            for start in range(0, len(texts), WINDOW):
                window = texts[start : start + WINDOW]
                lengths = self._lengths(window, literal)
                filled = [i for i, length in enumerate(lengths) if length > 0]
                for batch in token_batches([lengths[i] for i in filled], self._batch_tokens, batch_size):
                    chosen = [filled[i] for i in batch]
                    raw = self._forward([window[i] for i in chosen], kind, literal)
                    rows[start + np.array(chosen)] = truncate(raw, dim, unit=unit)
                    bar.update(len(chosen))
                bar.update(len(window) - len(filled))
        self._check_finite(rows, texts)
        return cast(Any, torch.from_numpy(rows)) if convert_to_tensor or not convert_to_numpy else rows

    def _literal_prompt(self, kind: Kind, prompt: str | None, prompt_name: str | None) -> str:
        if prompt is not None and prompt_name is not None:
            raise UsageError("Both prompt and prompt_name came; give one of them.")
        if prompt is not None:
            return prompt
        if prompt_name is not None:
            return named_prompt(self.stored_prompts, prompt_name)
        if kind == "query" and not self.prompts["query"] and not self._said_no_prompt:
            self._said_no_prompt = True
            logger.warning("%s stores no prompt for queries: they are embedded as they are.", self.name)
        return self.prompts[kind]

    def _lengths(self, texts: Sequence[str], prompt: str) -> list[int]:
        """Tokens of each text, as the model will see it; characters where the tokenizer cannot tell. 0 for an empty text
        where the tokenizer adds nothing: such rows would break a whole batch (pooling over no token)."""
        tokenizer: Any = getattr(self._model, "tokenizer", None)
        if not hasattr(tokenizer, "backend_tokenizer"):
            return [len(text) + 1 for text in texts]
        limited = {"truncation": True, "max_length": self.max_tokens} if self.max_tokens else {}
        ids = tokenizer([prompt + text for text in texts], return_attention_mask=False, **limited)["input_ids"]
        return [len(row) for row in ids]

    @torch.inference_mode()
    def _forward(self, texts: list[str], kind: Kind, prompt: str) -> Vectors:
        model = self._model
        features = model.preprocess(texts, prompt=prompt or None, task=kind)
        try:
            moved = {name: x.to(model.device) if isinstance(x, torch.Tensor) else x for name, x in features.items()}
            rows: Vectors = model(moved, task=kind)["sentence_embedding"].float().cpu().numpy()
        except torch.OutOfMemoryError:
            raise Stopped(
                f"{model.device} is out of memory with {self._batch_tokens} tokens a batch; run it again with fewer "
                f"(--batch-tokens, batch_tokens=)."
            ) from None
        return rows

    def _check_finite(self, rows: Vectors, texts: Sequence[str]) -> None:
        broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(broken):
            first, dtype = int(broken[0]), self.compute.get("dtype")
            advice = "mend the text or the model" if dtype == "float32" else "try dtype='float32'"
            raise ModelError(
                f"{self.name} gives NaN or infinity for {len(broken)} of {len(texts)} inputs, first input {first} "
                f"({texts[first][:40]!r}) in {dtype}; {advice}.",
                position=first,
            )


def _texts(inputs: Iterable[str] | str) -> list[str]:
    if isinstance(inputs, str):
        return [inputs]
    if isinstance(inputs, (Mapping, bytes)) or not isinstance(inputs, Iterable):
        raise UsageError(f"A {type(inputs).__name__} came; expected a string or an iterable of strings.")
    texts = list(inputs)
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise UsageError(f"Input {position} is a {type(text).__name__} ({str(text)[:40]}); expected a string.")
        if not is_unicode(text):
            raise UsageError(f"Input {position} holds half of a character ({ascii(text)[:60]}); mend or remove it.")
    return texts


def _cast(model: Any, dtype: torch.dtype) -> None:
    """The transformer's weights in `dtype`, everything after it in float32.

    Only parameters and stored buffers are cast: rotary frequencies, which are computed and not stored, lose their
    precision in bf16. What the model's class asks to keep in float32 is kept.
    """
    transformer = getattr(model[0], "auto_model", None)
    if transformer is None:
        model.float()
        return
    kept = tuple(getattr(transformer, "_keep_in_fp32_modules", None) or ())
    kept += tuple(getattr(transformer, "_keep_in_fp32_modules_strict", None) or ())
    stored = set(transformer.state_dict())
    for name, tensor in (*transformer.named_parameters(), *transformer.named_buffers()):
        if name in stored and tensor.is_floating_point():
            wanted = torch.float32 if any(part in name.split(".") for part in kept) else dtype
            tensor.data = tensor.data.to(wanted)
    for module in list(model.children())[1:]:
        module.float()
    model[0].register_forward_hook(_float32_states)


def _float32_states(module: Any, arguments: Any, features: dict[str, Any]) -> dict[str, Any]:
    for key in ("token_embeddings", "sentence_embedding"):
        if key in features:
            features[key] = features[key].float()
    return features
