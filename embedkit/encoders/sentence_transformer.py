"""Any model that sentence-transformers opens, for the torch backend."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from embedkit.encoders.attention import attention_of
from embedkit.encoders.conversion import convert
from embedkit.encoders.default_model import DEFAULT_MODEL, WEIGHTS, check_weights
from embedkit.encoders.fingerprint import describe_modules
from embedkit.encoders.foreign import opening, quiet
from embedkit.encoders.hub_cache import cached_file, offline
from embedkit.encoders.images import Reading
from embedkit.encoders.layers import check_it_runs, keep_layers
from embedkit.encoders.model_files import NO_LIMIT
from embedkit.encoders.model_folder import check_fetched
from embedkit.encoders.opened import Asked, Opened, limited
from embedkit.encoders.openvino_import import openvino_installed
from embedkit.encoders.pieces import Tokenization
from embedkit.encoders.routes import is_routed, normalizes, readers, routed_width
from embedkit.encoders.torch_backend import (
    TorchBackend,
    default_dtype,
    fast_tokenizer,
    set_threads,
    truncation_side,
)
from embedkit.encoders.trial import Trial, failure, tried
from embedkit.encoders.vocabulary import check_vocabularies
from embedkit.errors import MissingDependency, ModelError, UsageError

BATCH_TOKENS = {"cpu": 1024, "cuda": 65536}
# tables of positions as families name them, some of which begin a few rows later
POSITIONS = ("position_embeddings", "position_embedding", "embed_positions", "positions_embed", "pos_emb", "wpe")
OFFSET = 8
logger = logging.getLogger(__name__)
UNUSED = r"(^|\.)(pooler\.|mask_token$|masked_spec_embed$)"  # weights that many folders lack and no row depends on


def open_sentence_transformer(asked: Asked, folder: Path | None) -> Opened:
    """folder: where the model lies on this machine; None: the hub has it. Raises what `load` raises."""
    if asked.threads is not None:
        set_threads(asked.threads)
    place = torch_device(asked.device)

    def opened() -> tuple[Any, bool]:
        model = _open(asked, folder, _attention(place, asked.dtype))
        if asked.layers is None or not keep_layers(model, asked.layers, asked.name):
            return model.to(place), False
        check_it_runs(model.to(place), asked.layers, asked.name)
        return model, True

    model, cut = opened()
    tokens = _limit_tokens(model, asked.max_tokens, asked.name)
    if is_routed(model):
        routed_width(model, asked.name)  # there is one
    pooling = next((module for module in model.children() if type(module).__name__ == "Pooling"), None)
    tokenizer = fast_tokenizer(model)
    check_vocabularies(model, asked.name)
    tokenization = (
        Tokenization(
            tokenizer, tokens, pool_prompt=getattr(pooling, "include_prompt", True), side=truncation_side(model)
        )
        if tokenizer
        else None
    )
    reading = Reading.of(model)
    trial = _trial(model, tokenization, reading, asked.name)
    description = {"modules": describe_modules(model)}  # before the weights are cast
    attention = attention_of(model[0].auto_model) if tokenizer else None
    budget = asked.batch_tokens or BATCH_TOKENS.get(place.type, BATCH_TOKENS["cpu"])
    converted = None
    if (
        place.type == "cpu"
        and tokenization
        and trial.batching == "padded"
        and asked.backend != "torch"
        and asked.dtype != "float16"
        and openvino_installed()
    ):
        converted = convert(
            model,
            tokenization,
            asked.name,
            dtype=asked.dtype,
            threads=asked.threads,
            batch_tokens=budget,
            reopen=lambda: opened()[0],
        )
    if asked.backend == "openvino" and converted is None:
        raise UsageError(
            f"backend='openvino' cannot run {asked.name} with device={asked.device!r} and dtype={asked.dtype!r}"
            f"{'' if trial.batching == 'padded' else ', for its rows depend on padding'}; leave it to 'auto'."
        )
    return Opened(
        backend=converted or _by_torch(model, asked, tokenization, budget, lambda: opened()[0]),
        tokenization=tokenization,
        description=description,
        max_tokens=tokens,
        prompts=dict(model.prompts),
        default_prompt_name=model.default_prompt_name,
        similarity=model.similarity_fn_name,
        normalize=normalizes(model),
        width=trial.width,
        batch_tokens=budget,
        pooling=str(getattr(pooling, "pooling_mode", "its own")),
        cut=cut,
        reading=reading,
        batching=trial.batching,
        attention=attention,
    )


def _trial(model: Any, tokenization: Tokenization | None, reading: Reading | None, name: str) -> Trial:
    if reading is None:
        return tried(model, tokenization, name)
    width = model.get_embedding_dimension()  # it may read no texts at all
    if not width:
        raise ModelError(f"{name} gives no rows of texts; choose a model that embeds them.")
    return Trial(width, "padded")


def _by_torch(
    model: Any, asked: Asked, tokenization: Tokenization | None, budget: int, reopen: Callable[[], Any]
) -> TorchBackend:
    """In the dtype that is asked for, in float32 where the family does not compute in that."""
    backend = TorchBackend(model, dtype=_dtype(asked.dtype, model), batch_tokens=budget, reopen=reopen)
    if backend.compute["dtype"] == "float32" or Reading.of(model) is not None:
        return backend
    reason = failure(backend, tokenization)
    if reason is None:
        return backend
    logger.warning("%s computes in float32: in %s it fails (%s).", asked.name, backend.compute["dtype"], reason)
    return backend.in_float32()


def open_in_float32(asked: Asked, folder: Path | None) -> Any:
    """The SentenceTransformer itself, in float32 on the CPU, under the token limit that `load` gives it: what embedkit's
    rows are compared with."""
    model = _open(asked, folder, {}).float().eval()
    _limit_tokens(model, asked.max_tokens, asked.name)
    return model


def _dtype(dtype: str, model: Any) -> str:
    if not any(hasattr(reader, "auto_model") for reader in readers(model)):
        return "float32"  # static rows stay as they are
    return default_dtype(model.device) if dtype == "auto" else dtype


def _open(asked: Asked, folder: Path | None, attention: dict[str, str]) -> Any:
    """A SentenceTransformer on the CPU, in the dtype of its stored weights."""
    from sentence_transformers import SentenceTransformer

    try:
        with opening(asked.name), quiet(), whole_weights(), offline() if folder else nullcontext():
            if folder is None:
                check_fetched(asked.name, asked.revision)
            loaded = SentenceTransformer(
                str(folder or asked.name),
                revision=asked.revision,
                device="cpu",
                prompts=dict(asked.prompts) if asked.prompts else None,
                model_kwargs={"dtype": "auto", "use_safetensors": True, **attention},
                trust_remote_code=asked.trust_remote_code,
                local_files_only=folder is not None,
            )
    except ModelError as error:
        if "Pillow" in str(error.__cause__) and importlib.util.find_spec("PIL") is None:
            raise MissingDependency(
                f'{asked.name} reads images, which needs Pillow; install it: pip install -e ".[images]".'
            ) from None
        raise
    if asked.name == DEFAULT_MODEL and asked.revision is None and folder is None:  # fetched just now
        check_weights(cached_file(asked.name, None, WEIGHTS) or Path(WEIGHTS))
    return loaded


@contextmanager
def whole_weights() -> Iterator[None]:
    """transformers draws weights that a folder lacks at random, anew at each load, and says so in a log line. Here they raise a
    ValueError that names them, and so do those of another shape, before memory is taken for them."""
    from transformers import PreTrainedModel

    library: Any = PreTrainedModel
    load = library._load_pretrained_model

    def checked(
        model: Any, state_dict: Any, checkpoint_files: Any, load_config: Any, expected_keys: list[str] | None = None
    ) -> Any:
        found, offloaded = load(model, state_dict, checkpoint_files, load_config, expected_keys)
        for name, stored, declared in sorted(found.mismatched_keys):
            raise ValueError(f"{name} is stored as {tuple(stored)} and the config makes it {tuple(declared)}")
        if missing := sorted(_missing(model, found.missing_keys, expected_keys)):
            more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
            raise ValueError(f"its weights lack {', '.join(missing[:3])}{more}, which would be drawn at random")
        return found, offloaded

    library._load_pretrained_model = staticmethod(checked)
    try:
        yield
    finally:
        library._load_pretrained_model = staticmethod(load)


def _missing(model: Any, absent: set[str], expected: list[str] | None) -> set[str]:
    """The parameters among those that no row can do without; expected: of an adapter, whose base is whole already."""
    wanted = {name for name, _ in model.named_parameters()} if expected is None else set(expected)
    tied = model.all_tied_weights_keys  # a parameter -> the one that it shares its values with
    given = {source for target, source in tied.items() if target not in absent}
    ignored = re.compile("|".join([UNUSED, *(model._keys_to_ignore_on_load_missing or ())]))
    return {name for name in absent & wanted if name not in tied and name not in given and not ignored.search(name)}


def torch_device(device: str) -> torch.device:
    from sentence_transformers.util import get_device_name

    try:
        place = torch.device(get_device_name() if device == "auto" else device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device={device!r} cannot be used here ({str(error).splitlines()[0]}); try 'auto' or 'cpu'."
        ) from None
    return place


def _limit_tokens(model: Any, max_tokens: int | None, name: str) -> int | None:
    """Sets the token limit that was asked for, and never one beyond the model's positions; returns it, of several routes the
    largest."""
    limits = [_limit_reader(reader, max_tokens, name) for reader in readers(model)]
    return max((limit for limit in limits if limit is not None), default=None)


def _limit_reader(reader: Any, max_tokens: int | None, name: str) -> int | None:
    own = getattr(reader, "max_seq_length", None)
    own = own if own and own < NO_LIMIT else None
    tokens = limited(max_tokens, own, positions_of(reader), name)
    if tokens is not None and tokens != own:
        try:
            reader.max_seq_length = tokens
        except AttributeError:
            raise UsageError(
                f"max_tokens={tokens} came; {name} has a {type(reader).__name__}, which reads texts of any length: leave it out."
            ) from None
    return tokens


def positions_of(model: Any) -> int | None:
    """How many tokens of an input have a position; None where the model, or its module that reads, sets no bound."""
    most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    bound = None
    for place, module in model.named_modules():
        if place.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(len(module.weight) - module.padding_idx - 1)  # RoBERTa counts from there: 514 hold 512
        rows = len(module.weight) if isinstance(module, torch.nn.Embedding) else 0
        if isinstance(most, int) and place.rpartition(".")[2] in POSITIONS and most <= rows <= most + OFFSET:
            bound = most
    return bound  # rotations and distances go on for ever, whatever the config says of the training


def _attention(place: torch.device, dtype: str) -> dict[str, str]:
    """FlashAttention on a GPU that has it installed, whose sequences need no padding; sentence-transformers' choice else."""
    from transformers.utils import is_flash_attn_2_available

    half = dtype != "float32" and place.type == "cuda"
    return {"attn_implementation": "flash_attention_2"} if half and is_flash_attn_2_available() else {}
