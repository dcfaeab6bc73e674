"""From a name to an Encoder: any SentenceTransformer folder or hub id, and any plain Hugging Face encoder.

On a CPU OpenVINO runs the model where it is installed. A folder of a family that `model_files` reads needs neither torch nor
sentence-transformers for that, whose import takes seconds; any other model is opened by sentence-transformers and
converted. Models on a GPU, and those that cannot be converted, are run by torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from embedkit.encoders.default_model import DEFAULT_MODEL, default_model_folder
from embedkit.encoders.doctor.first_look import first_look
from embedkit.encoders.fingerprint import describe_files
from embedkit.encoders.foreign import opening
from embedkit.encoders.hub_cache import cached_folder, found_here
from embedkit.encoders.layers import off_the_grid, trained_for_layers, trained_grid
from embedkit.encoders.model_files import ModelFiles, position_limit, read_model_files
from embedkit.encoders.model_folder import check_folder
from embedkit.encoders.opened import Asked, Opened, limited
from embedkit.encoders.openvino_backend import open_bert
from embedkit.encoders.openvino_import import openvino_installed
from embedkit.encoders.pieces import Tokenization
from embedkit.encoders.text_encoder import TextEncoder
from embedkit.encoders.vocabulary import check_vocabulary
from embedkit.errors import MissingDependency, ModelError, UsageError
from embedkit.types import Kind

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
    layers: int | None = None,
    prompts: Mapping[str, str] | None = None,
    prompt_names: Mapping[Kind, str] | None = None,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
    profile: str | Mapping[str, Any] | None = None,
    calibrate: Iterable[str] | None = None,
) -> TextEncoder:
    """Opens a SentenceTransformer folder or hub id, or a plain Hugging Face encoder (mean pooling, said in a log line).

    model: None is the default model, all-MiniLM-L6-v2: the package of the extra `offline`, else the local hub cache, else the hub.
    A hub id that the cache holds whole is opened from there, without asking the hub.
    revision: of a hub id. device: "auto" or torch's name. backend: "auto" (OpenVINO on the CPU where it is installed and
    agrees with torch), "openvino" or "torch". dtype: "auto" takes bfloat16 where this CPU multiplies it faster than
    float32, or the GPU has units for it; "float32" means float32. threads: of the backend; torch's are set for the whole
    process. batch_tokens: padded tokens a batch. max_tokens: longer inputs are cut there (the model's own limit when left
    out). dim: keep the first so many columns, at unit length again where rows are unit. layers: compute the first so many
    layers of the transformer alone, then what stands after the last one: the family's norm, pooling, heads. prompts: name ->
    literal prompt, beside or instead of those the model stores. prompt_names: kind -> which of them that kind takes.
    trust_remote_code: run the code that the repository brings, which must be a folder or pinned to a commit by `revision`; it
    is never stored, so an index of such a model is opened with the model beside it.
    local_files_only: ask the hub for nothing and take what its cache holds; of a folder nothing is asked anyway.
    profile: "fast" runs the matrix products in int8, another space than the model's own: `calibrate` gives it texts like
    those that will come, of which it takes the first 256; half set its ranges, the other half measure its agreement with
    float32, which is logged, and refused with a ModelError where it is low. The profile in an encoder's `settings` opens the
    same space again, without texts.
    Raises ModelError when the model cannot be opened, UsageError for a setting that it cannot have. Weights are read from
    safetensors alone, and no code of the model's repository is run unless it is trusted.
    """
    name = _full_name(model)
    asked = Asked(
        name, revision, device, backend, dtype, threads, batch_tokens, max_tokens, layers, prompts, trust_remote_code
    )
    with opening(name):
        folder = _local_folder(name, revision, local_files_only)
        files = read_model_files(folder, layers) if folder else None
    if profile is not None or calibrate is not None:
        _check_quantizable(files, asked)
    with opening(name):
        if files and _takes_openvino(asked):
            opened = _open_files(files, asked)
        else:
            from embedkit.encoders.sentence_transformer import open_sentence_transformer

            opened = open_sentence_transformer(asked, folder)
            folder = folder or _local_folder(name, revision)  # in the hub's cache by now
            files = files or (read_model_files(folder, layers) if folder else None)
    if folder and not (folder / "modules.json").exists():
        logger.warning("%s has no modules.json: taken as a plain encoder, with %s pooling.", name, opened.pooling)
    grid = trained_grid(folder)
    if grid and (remark := off_the_grid(grid, layers, dim)):
        logger.warning("%s: %s; others are usually poorer.", name, remark)
    if opened.cut and grid is None and not trained_for_layers(folder):
        logger.warning(
            "%s stops after layers=%d: the rows of a model that was not trained to be cut are usually poor.",
            name,
            layers,
        )
    again = {
        "model": _settled(name),
        "revision": revision,
        "max_tokens": max_tokens,
        "dim": dim,
        "layers": layers,
        "prompts": prompts,
        "prompt_names": prompt_names,
    }
    settings = {key: dict(value) if isinstance(value, Mapping) else value for key, value in again.items() if value}
    description = describe_files(files) if files else opened.description

    def encoder(opened: Opened, stored: Mapping[str, Any] | None = None) -> TextEncoder:
        extra = {} if stored is None else {"profile": stored}
        described, chosen = {**description, **extra}, {**settings, **extra}
        return TextEncoder(name, opened, described, dim=dim, prompt_names=prompt_names or {}, settings=chosen)

    if files is None or (profile is None and calibrate is None):
        made = encoder(opened)
    else:
        from embedkit.encoders.int8_profile import open_profile

        def by_graph(graph: Callable[[ModelFiles], Any], dtype: str | None) -> Opened:
            return _open_files(files, replace(asked, dtype=dtype or asked.dtype), graph)

        made = open_profile(profile, calibrate, files, by_graph, encoder)
    if name != DEFAULT_MODEL:
        first_look(made, opened.attention)
    return made


def open_reference(encoder: TextEncoder, *, trusted: bool = False) -> Any:
    """The SentenceTransformer of an encoder that `load` returned, in float32 on the CPU; trusted: as trust_remote_code."""
    from embedkit.encoders.sentence_transformer import open_in_float32

    kept = encoder.settings
    name, revision = kept.get("model", encoder.name), kept.get("revision")
    tokens, prompts = kept.get("max_tokens"), kept.get("prompts")
    asked = Asked(name, revision, "cpu", "torch", "float32", None, None, tokens, kept.get("layers"), prompts, trusted)
    with opening(encoder.name):
        return open_in_float32(asked, _local_folder(name, revision))


def open_for_training(model: str, device: str = "auto") -> Any:
    """The SentenceTransformer that `load` would run, with float32 weights, on the device. Raises what `load` raises."""
    from embedkit.encoders.sentence_transformer import open_in_float32, torch_device

    asked = Asked(_full_name(model), None, device, "torch", "float32", None, None, None, None, None, False)
    with opening(asked.name):
        return open_in_float32(asked, _local_folder(asked.name, None)).to(torch_device(device))


def _check_quantizable(files: ModelFiles | None, asked: Asked) -> None:
    """Raises UsageError where the model, its settings or the machine rule a profile out."""
    if files is None or not _takes_openvino(asked):
        raise UsageError(
            f"A profile is for BERT, RoBERTa, XLM-RoBERTa and CamemBERT models that lie on this machine and are run by OpenVINO on the "
            f"CPU, not for {asked.name} with backend={asked.backend!r}, dtype={asked.dtype!r} and device={asked.device!r}; leave the "
            f"profile out."
        )
    from embedkit.encoders.int8_profile import int8_is_exact

    if not int8_is_exact():
        raise UsageError(
            "A profile needs a CPU with int8 dot products (VNNI), whose sums do not overflow; leave the profile out here."
        )


def _full_name(model: str | Path | None) -> str:
    """A folder comes before a hub id of the same name, and the default model may go by its short name."""
    if model is None or (str(model) == DEFAULT_MODEL.rpartition("/")[2] and not Path(model).is_dir()):
        return DEFAULT_MODEL
    if not str(model):
        raise UsageError("An empty name came as model; expected a folder or a hub id.")
    return str(model)


def _local_folder(name: str, revision: str | None, local_files_only: bool = False) -> Path | None:
    """Where the model lies on this machine, its files checked; None where it has to be fetched from the hub.

    Raises ModelError for what can only be a folder and is not there, and what `check_folder` raises.
    """
    folder = _found(name, revision)
    if folder is None and local_files_only:
        folder = found_here(name, revision)
    if folder is not None:
        check_folder(folder)
    return folder


def _found(name: str, revision: str | None) -> Path | None:
    if Path(name).is_dir():
        return Path(name)
    if name == DEFAULT_MODEL and revision is None and (folder := default_model_folder()):
        return folder
    if name.count("/") > 1 or name.startswith((".", "~")):
        raise ModelError(f"There is no folder {name}; expected a model folder or a hub id such as {DEFAULT_MODEL}.")
    return cached_folder(name, revision)


def _takes_openvino(asked: Asked) -> bool:
    """Whether OpenVINO runs a model whose files are known. Raises where it was asked for and cannot."""
    if asked.backend == "openvino":
        if not openvino_installed():
            raise MissingDependency(
                "backend='openvino' needs the package openvino; install it: pip install -e \".[cpu]\"."
            )
        if asked.dtype == "float16" or asked.device not in ("auto", "cpu"):
            raise UsageError(
                f"backend='openvino' computes in float32 or bfloat16 on the CPU; dtype={asked.dtype!r} and "
                f"device={asked.device!r} came."
            )
    possible = asked.backend != "torch" and asked.dtype != "float16"
    return possible and _on_cpu(asked.device) and openvino_installed()


def _on_cpu(device: str) -> bool:
    """Told without torch, whose import takes a second: a GPU shows in the system's device files."""
    return device == "cpu" or (device == "auto" and not any(Path(place).exists() for place in GPU_PLACES))


def _open_files(files: ModelFiles, asked: Asked, graph: Callable[[ModelFiles], Any] | None = None) -> Opened:
    budget = asked.batch_tokens or OPENVINO_BATCH_TOKENS
    check_vocabulary(files.tokenizer, len(files.tensors["embeddings.word_embeddings.weight"]), asked.name)
    tokens = limited(asked.max_tokens, files.max_tokens, position_limit(files.config), asked.name)
    return Opened(
        backend=open_bert(files, dtype=asked.dtype, threads=asked.threads, batch_tokens=budget, graph=graph),
        tokenization=Tokenization(files.tokenizer, tokens, pool_prompt=files.pool_prompt),
        description={},
        max_tokens=tokens,
        prompts={"query": "", "document": "", **files.prompts, **(asked.prompts or {})},
        default_prompt_name=files.default_prompt_name,
        similarity=files.similarity,
        normalize=files.normalize,
        width=files.width,
        batch_tokens=budget,
        pooling=files.pooling,
        cut=files.cut,
    )


def _settled(name: str) -> str:
    """A name that opens the same model from any working directory."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name
