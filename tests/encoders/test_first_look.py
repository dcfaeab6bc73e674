"""What `load` says of a model that it has not met, and what it remembers."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedkit.encoders import load
from embedkit.encoders.doctor import first_look
from embedkit.encoders.doctor.patient import Patient
from embedkit.storage import read_json

from . import patients

pytestmark = pytest.mark.filterwarnings("ignore")
real_record_path = first_look.record_path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the hub's client, with nothing of ours in it."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(folder))
    monkeypatch.setattr(first_look, "record_path", real_record_path)
    return folder


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the models that were looked at."""
    seen: list[str] = []
    looked = first_look._looked

    def watch(patient: Patient) -> list[first_look.Finding]:
        seen.append(patient.name)
        return looked(patient)

    monkeypatch.setattr(first_look, "_looked", watch)
    yield seen


def test_a_healthy_model_is_met_once_and_in_silence(
    tiny_model: Path, hub: Path, looks: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    load(tiny_model, dtype="float32")
    load(tiny_model, dtype="float32")
    assert looks == [str(tiny_model)]
    assert not caplog.records
    record = hub / "embedkit" / "seen.json"
    assert list(read_json(record)["models"].values()) == [[]]
    load(tiny_model, dtype="float32", max_tokens=16)  # another space
    assert len(looks) == len(read_json(record)["models"]) == 2


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("a bidirectional config that runs causal", "attention-direction"),
        ("a prompt name never applied", "prompt-never-applied"),
        ("EOS missing after truncation", "eos-cut"),
    ],
)
def test_a_fault_is_told_at_every_load(
    fault: str, name: str, tmp_path: Path, hub: Path, looks: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = patients.FAULTS[fault][0](tmp_path)
    for _ in range(2):
        with caplog.at_level(logging.WARNING, logger="embedkit"):
            load(folder, backend="torch")
    told = [record.getMessage() for record in caplog.records]
    assert len(looks) == 1
    assert len(told) == 2 and told[0] == told[1]
    assert told[0].startswith(f"{folder}: ") and told[0].endswith(f"({name}; `embedkit doctor` says more.)")


def test_nothing_is_written_where_the_hub_was_never_used(
    tiny_model: Path, hub: Path, looks: list[str], tmp_path: Path
) -> None:
    hub.rmdir()
    load(tiny_model)
    load(tiny_model)
    assert len(looks) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.model
def test_the_default_model_is_known(default_encoder: object, hub: Path, looks: list[str]) -> None:
    load()
    assert looks == [] == list(hub.iterdir())


def test_a_folder_that_cannot_be_written_does_not_matter(tiny_model: Path, hub: Path, looks: list[str]) -> None:
    (hub / "embedkit").write_text("a file where the folder would be")
    assert load(tiny_model).dim == 32
    assert load(tiny_model).dim == 32
    assert len(looks) == 2


@pytest.mark.parametrize("content", ["", "[]", '{"models": 3, "checksum": ""}', "{" * 10_000])
def test_a_damaged_record_is_made_anew(content: str, tiny_model: Path, hub: Path, looks: list[str]) -> None:
    record = hub / "embedkit" / "seen.json"
    record.parent.mkdir()
    record.write_text(content)
    for _ in range(2):
        load(tiny_model)
    assert len(looks) == 1
    assert len(read_json(record)["models"]) == 1


def test_the_oldest_are_forgotten(
    plain_model: Path, tiny_model: Path, hub: Path, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_look, "KEPT", 1)
    for model in (tiny_model, plain_model, plain_model, tiny_model):
        load(model)
    assert looks == [str(tiny_model), str(plain_model), str(tiny_model)]
    assert len(json.loads((hub / "embedkit" / "seen.json").read_text())["models"]) == 1


def test_a_look_that_fails_does_not_fail_the_load(
    tiny_model: Path, hub: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("an unknown kind of model")

    monkeypatch.setattr(Patient, "voices", property(fail))
    assert load(tiny_model).dim == 32
    assert not caplog.records
