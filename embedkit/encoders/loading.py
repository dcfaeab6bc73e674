"""From a name to an Encoder: any SentenceTransformer folder or hub id, and any plain Hugging Face encoder.

A folder of a family that `model_files` reads is run by OpenVINO where that is installed, without importing torch or
sentence-transformers, whose import takes seconds. Every other model, and every model on a GPU, is opened by
sentence-transformers and run by torch.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path

from embedkit.encoders.default_model import DEFAULT_MODEL, default_model_folder
from embedkit.encoders.fingerprint import describe_files
from embedkit.encoders.hub_cache import cached_folder
from embedkit.encoders.model_files import ModelFiles, position_limit, read_model_files
from embedkit.encoders.opened import Opened, limited, positive
from embedkit.encoders.pieces import Tokenization
from embedkit.encoders.text_encoder import TextEncoder
from embedkit.errors import MissingDependency, ModelError, UsageError
from embedkit.types import Kind

BACKENDS = ("auto", "openvino", "torch")
DTYPES = ("float32", "bfloat16", "float16")
OPENVINO_BATCH_TOKENS = 1024
GPU_PLACES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dri/renderD128")
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
) -> TextEncoder:
    """Opens a SentenceTransformer folder or hub id, or a plain Hugging Face encoder (mean pooling, said in a log line).

    model: None is the default model, all-MiniLM-L6-v2: the package of the extra `offline`, else the local hub cache, else the hub.
    A hub id that the cache holds whole is opened from there, without asking the hub.
    revision: of a hub id. device: "auto" or torch's name. backend: "auto", "torch", or "openvino" (BERT and its kin, on the
    CPU). dtype: "auto" takes bfloat16 where this CPU multiplies it faster than float32, or the GPU has units for it;
    "float32" means float32. threads: of the backend; torch's are set for the whole process. batch_tokens: padded tokens a
    batch. max_tokens: longer inputs are cut there (the model's own limit when left out). dim: keep the first so many
    columns, at unit length again where rows are unit. prompts: name -> literal prompt, beside or instead of those the
    model stores. prompt_names: kind -> which of them that kind takes.
    Raises ModelError when the model cannot be opened, UsageError for a setting that it cannot have. Weights are read from
    safetensors alone, and no code of the model's repository is run.
    """
    _check_choice("backend", backend, BACKENDS)
    _check_choice("dtype", dtype, ("auto", *DTYPES))
    for option, value in (("threads", threads), ("batch_tokens", batch_tokens)):
        if value is not None:
            positive(option, value)
    name = _full_name(model)
    folder = _local_folder(name, revision)
    files = read_model_files(folder) if folder else None
    if files and _takes_openvino(backend, device, dtype):
        opened = _open_files(files, name, dtype, threads, batch_tokens, max_tokens, prompts)
    elif backend == "openvino":
        raise UsageError(
            f"backend='openvino' runs BERT and its kin in float32 or bfloat16 on the CPU, not {name} with device={device!r} "
            f"and dtype={dtype!r}; leave the backend to 'auto'."
        )
    else:
        from embedkit.encoders.sentence_transformer import open_sentence_transformer

        opened = open_sentence_transformer(
            name,
            folder,
            revision=revision,
            device=device,
            dtype=dtype,
            threads=threads,
            batch_tokens=batch_tokens,
            max_tokens=max_tokens,
            prompts=prompts,
        )
        folder = folder or _local_folder(name, revision)  # in the hub's cache by now
        files = files or (read_model_files(folder) if folder else None)
    if folder and not (folder / "modules.json").exists():
        logger.warning("%s has no modules.json: taken as a plain encoder, with %s pooling.", name, opened.pooling)
    asked = {
        "model": _settled(name),
        "revision": revision,
        "max_tokens": max_tokens,
        "dim": dim,
        "prompts": prompts,
        "prompt_names": prompt_names,
    }
    return TextEncoder(
        name,
        opened,
        describe_files(files) if files else opened.description,
        dim=dim,
        prompt_names=prompt_names or {},
        settings={key: dict(value) if isinstance(value, Mapping) else value for key, value in asked.items() if value},
    )


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{option}={value!r} came; expected {', '.join(choices)}.")


def _full_name(model: str | Path | None) -> str:
    """A folder comes before a hub id of the same name, and the default model may go by its short name."""
    if model is None or (str(model) == DEFAULT_MODEL.rpartition("/")[2] and not Path(model).is_dir()):
        return DEFAULT_MODEL
    if not str(model):
        raise UsageError("An empty name came as model; expected a folder or a hub id.")
    return str(model)


def _local_folder(name: str, revision: str | None) -> Path | None:
    """Where the model lies on this machine; None where it has to be fetched from the hub.

    Raises ModelError for what can only be a folder and is not there.
    """
    if Path(name).is_dir():
        return Path(name)
    if name == DEFAULT_MODEL and revision is None and (folder := default_model_folder()):
        return folder
    if name.count("/") > 1 or name.startswith((".", "~")):
        raise ModelError(f"There is no folder {name}; expected a model folder or a hub id such as {DEFAULT_MODEL}.")
    return cached_folder(name, revision)


def _takes_openvino(backend: str, device: str, dtype: str) -> bool:
    """Whether OpenVINO runs a model that it can run. Raises MissingDependency where it was asked for and is absent."""
    if backend == "torch" or device not in ("auto", "cpu") or dtype == "float16":
        return False
    installed = importlib.util.find_spec("openvino") is not None
    if backend == "openvino":
        if not installed:
            raise MissingDependency(
                "backend='openvino' needs the package openvino; install it: pip install 'embedkit[cpu]'."
            )
        return True
    return installed and (device == "cpu" or not any(Path(place).exists() for place in GPU_PLACES))


def _open_files(
    files: ModelFiles,
    name: str,
    dtype: str,
    threads: int | None,
    batch_tokens: int | None,
    max_tokens: int | None,
    prompts: Mapping[str, str] | None,
) -> Opened:
    from embedkit.encoders.openvino_backend import OpenVinoBackend, available_threads, bfloat16_is_fast

    used = threads or available_threads()
    if dtype == "auto":
        dtype = "bfloat16" if bfloat16_is_fast(used) else "float32"
    budget = batch_tokens or OPENVINO_BATCH_TOKENS
    tokens = limited(max_tokens, files.max_tokens, position_limit(files.config), name)
    return Opened(
        backend=OpenVinoBackend(files, dtype=dtype, threads=used, batch_tokens=budget),
        tokenization=Tokenization(files.tokenizer, tokens, pool_prompt=files.pool_prompt),
        description={},
        max_tokens=tokens,
        prompts={"query": "", "document": "", **files.prompts, **(prompts or {})},
        default_prompt_name=files.default_prompt_name,
        similarity=files.similarity,
        normalize=files.normalize,
        width=files.width,
        batch_tokens=budget,
        pooling=files.pooling,
    )


def _settled(name: str) -> str:
    """A name that opens the same model from any working directory."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name
