"""The local cache of the hub: a model that is whole there, and one whose list of modules is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedkit.encoders.hub_cache import cached_folder, found_here
from embedkit.errors import ModelError

COMMIT = "0" * 40


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    repository = tmp_path / "models--a--b"
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name in ("config", "tokenizer", "sentence_bert_config", "config_sentence_transformers", "tokenizer_config"):
        (folder / f"{name}.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return folder


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no JSON that can be read"),
        ("[{}]", "0.path is missing"),
        ('[{"path": 1, "type": "x"}]', "0.path is 1, not a text"),
        ('{"path": "x"}', "not a list"),
        ('[{"path": "../../x", "type": "x.Pooling"}]', "names '../../x' as the folder of a module"),
    ],
)
def test_a_damaged_list_of_modules_is_one_sentence(snapshot: Path, content: str, said: str) -> None:
    (snapshot / "modules.json").write_text("[]")
    assert cached_folder("a/b", None) == snapshot
    (snapshot / "modules.json").write_text(content)
    with pytest.raises(ModelError, match=r"modules\.json|snapshots") as caught:
        cached_folder("a/b", None)
    assert said in str(caught.value)


def test_what_is_here_is_found_whole_or_not(snapshot: Path) -> None:
    (snapshot / "tokenizer.json").unlink()
    assert cached_folder("a/b", None) is None
    assert found_here("a/b", None) == snapshot
    with pytest.raises(ModelError, match=r"a/c is not on this machine.*--model a/c"):
        found_here("a/c", None)
