"""How the models of an index are opened, at its first question in words, in whatever process that is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedkit.encoder import Encoder, SparseEncoder
from embedkit.encoders import TextEncoder, load
from embedkit.errors import ModelError
from embedkit.index.manifest import read_manifest

# of `load`, that an index may bring; above all not that the code of its model is to be trusted
STORED_SETTINGS = frozenset({"model", "revision", "max_tokens", "dim", "layers", "prompts", "prompt_names", "profile"})


def open_sparse(model: str | Path | SparseEncoder, *, local_files_only: bool = False) -> SparseEncoder:
    if not isinstance(model, (str, Path)):
        return model
    from embedkit.encoders.sparse_encoder import load_sparse

    return load_sparse(model, local_files_only=local_files_only)


def sparse_opener(path: Path, model: str | Path | SparseEncoder | None) -> Callable[[], SparseEncoder] | None:
    sparse = read_manifest(path).sparse
    named = model if model is not None else None if sparse is None else sparse.model
    return None if named is None else _SparseOpener(named, model is None)


def encoder_opener(
    path: Path, model: str | Path | Encoder | None, options: dict[str, Any]
) -> Callable[[], Encoder] | None:
    if model is not None and not isinstance(model, (str, Path)):
        return _Given(path, model)
    stored = {name: value for name, value in read_manifest(path).source.settings.items() if name in STORED_SETTINGS}
    named = stored.pop("model", None)
    if model is None and named is None:
        return None
    if model is not None:
        stored.pop("revision", None)  # it belongs to the hub id that the index names
    return _Opener(path, model, named, {**stored, "local_files_only": model is None, **options})


# How models are opened, as objects that go to another process with an index, where functions inside functions cannot.


@dataclass(frozen=True)
class _Given:
    """A model that was opened by the caller: a copy in the same process shares it, another process opens what it was opened from."""

    path: Path
    model: Any

    def __call__(self) -> Any:
        return self.model

    def __reduce__(self) -> tuple[Any, ...]:
        if not isinstance(self.model, TextEncoder) or "model" not in self.model.settings:
            return _Given, (self.path, self.model)  # of somebody else: it can be sent, or says itself that it cannot
        settings = {name: value for name, value in self.model.settings.items() if name in STORED_SETTINGS}
        return _Opener, (self.path, settings.pop("model"), None, settings)

    def __deepcopy__(self, _: Any) -> _Given:
        return self


@dataclass(frozen=True)
class _Opener:
    path: Path
    model: str | Path | None
    named: Any  # by the index
    options: Mapping[str, Any]  # an index from elsewhere does not choose what is fetched

    def __call__(self) -> Encoder:
        if self.model is None and Path(str(self.named)).is_absolute() and not Path(str(self.named)).is_dir():
            raise ModelError(
                f"{self.path} names the model {self.named}, which is not there any more; say where it is with --model."
            )
        return load(self.model or self.named, **self.options)


@dataclass(frozen=True)
class _SparseOpener:
    model: Any
    local_files_only: bool

    def __call__(self) -> SparseEncoder:
        return open_sparse(self.model, local_files_only=self.local_files_only)

    def __deepcopy__(self, _: Any) -> _SparseOpener:
        return self
