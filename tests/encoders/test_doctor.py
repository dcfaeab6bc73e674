"""Eight seeded faults give eight findings, healthy models of five families none."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from embedkit.encoders import load
from embedkit.encoders.attention import attention_of
from embedkit.encoders.doctor.checks import CHECKS
from embedkit.encoders.doctor.examination import doctor, examine, patient_of
from embedkit.encoders.doctor.patient import Finding, NotChecked, Voice
from embedkit.errors import ModelError

from . import patients

pytestmark = pytest.mark.filterwarnings("ignore")
AS_LOADED = (
    "BERT",
    "Llama",
)  # run by OpenVINO, from their files and converted; torch runs the others, which is quicker
Build = Callable[[Path], Any]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two threads wait for each other longer than these models compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.long
@pytest.mark.parametrize("name", patients.HEALTHY)
def test_a_healthy_model_gives_no_finding(name: str, tmp_path: Path) -> None:
    options = {} if name in AS_LOADED else {"backend": "torch"}
    examination = doctor(patients.HEALTHY[name](tmp_path), **options)
    assert examination.findings == []
    assert examination.not_checked == {}
    assert list(examination.seen) == [check.name for check in CHECKS]


@pytest.mark.parametrize("name", patients.FAULTS)
def test_a_seeded_fault_gives_its_finding_and_no_other(name: str, tmp_path: Path) -> None:
    build, expected = patients.FAULTS[name]
    patient = build(tmp_path)
    options = {"backend": "torch"} if isinstance(patient, Path) else {}
    examination = doctor(patient, **options)
    assert [finding.name for finding in examination.findings] == [expected]
    (finding,) = examination.findings
    assert all(sentence.endswith(".") and len(sentence) > 40 for sentence in (finding.evidence, finding.fix))
    # nothing is passed over in silence
    checked = {*examination.seen, *examination.not_checked}
    assert len(checked) == len(CHECKS) - 1


@pytest.mark.model
def test_the_default_model_is_healthy(default_encoder: Any) -> None:
    examination = doctor(default_encoder)
    assert examination.findings == []
    assert examination.not_checked == {}
    assert "256 tokens in float32, bfloat16, float16" in examination.seen["overflow"]


@pytest.mark.parametrize("family", ["Bert", "Llama"])
def test_the_direction_of_attention_is_what_a_slow_loop_finds(family: str, tmp_path: Path) -> None:
    """Each later token is changed by itself; the first token's state follows any of them, or none."""
    from transformers import AutoModel

    patients.save(tmp_path, family, 50)
    model = AutoModel.from_pretrained(tmp_path).eval()
    ids = torch.arange(10, 16)[None]
    with torch.inference_mode():
        before = model(input_ids=ids).last_hidden_state[0, 0]
        follows = []
        for position in range(1, 6):
            changed = ids.clone()
            changed[0, position] = 30
            follows.append(not torch.equal(model(input_ids=changed).last_hidden_state[0, 0], before))
    assert set(follows) == {family == "Bert"}
    found = attention_of(model)
    assert found is not None
    assert (found.runs == "bidirectional", found.padded > 0) == (family == "Bert", family == "Bert")


def test_a_decoder_made_of_an_encoder_is_declared_causal(tmp_path: Path) -> None:
    patients.save(tmp_path, "Bert", 50, is_decoder=True)
    from transformers import BertModel

    found = attention_of(BertModel.from_pretrained(tmp_path).eval())
    assert found is not None
    assert (found.declared, found.runs) == ("causal", "causal")


def test_a_model_in_memory_comes_back_as_it_was(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(patients.encoder(tmp_path)), device="cpu").to(torch.bfloat16)
    before, limit = copy.deepcopy(model.state_dict()), model.max_seq_length
    examination = doctor(model)
    assert examination.findings == []
    assert list(examination.not_checked) == ["backends"]
    assert model.max_seq_length == limit
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}


def test_rows_that_are_no_numbers_are_found_and_the_rest_is_left_out(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(patients.encoder(tmp_path)), device="cpu")
    with torch.no_grad():
        model[0].auto_model.encoder.layer[1].output.dense.weight[3, 3] = float("nan")
    examination = doctor(model)
    assert [finding.name for finding in examination.findings] == ["not-finite"]
    assert examination.not_checked["padding"] == "it would only show not-finite again"


def _rows(size: int, bent: float) -> Callable[..., np.ndarray]:
    """Rows of ones whose first number grows with the size of the batch."""

    def rows(texts: list[str], at_once: int) -> np.ndarray:
        made = np.ones((len(texts), size), dtype=np.float32)
        made[:, 0] += bent * (at_once - 1)
        return made

    return rows


@pytest.mark.parametrize(("bent", "found"), [(0.0, []), (0.5, ["padding-dependence", "batch-dependence"])])
def test_rows_that_depend_on_their_batch_are_found(
    bent: float, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer

    patient = patient_of(SentenceTransformer(str(patients.encoder(tmp_path)), device="cpu"))
    rows = _rows(8, bent)
    monkeypatch.setattr(patient, "reference_rows", lambda texts, at_once, prompt="": rows(texts, at_once))
    names = [finding.name for finding in examine(patient).findings]
    assert [name for name in names if name.endswith("dependence")] == found


@pytest.mark.parametrize("kind", ["padding", "batch"])
@pytest.mark.parametrize(
    ("noise", "bent", "found"),
    [(0.0, 0.0, False), (0.05, 0.0, False), (0.05, 0.3, True), (0.0, 0.3, True)],
    ids=["healthy", "noisy", "faulty and noisy", "faulty"],
)
def test_noise_of_the_precision_is_no_fault(noise: float, bent: float, found: bool, kind: str) -> None:
    """A voice whose rows move by chance in bfloat16 with every batch, as a deep decoder's do: its float32 rows decide."""

    def rows(noise: float) -> Callable[[tuple[str, ...], int], np.ndarray]:
        def made(texts: tuple[str, ...], size: int) -> np.ndarray:
            chance = np.random.default_rng(size).standard_normal((len(texts), 64)).astype(np.float32)
            return _rows(64, bent)(list(texts), size) + noise * chance

        return made

    exact = Voice("embedkit", rows(0.0), 0.9999)
    patient: Any = SimpleNamespace(voices=[Voice("embedkit", rows(noise), 0.999, lambda: exact)])
    check = next(check for check in CHECKS if check.name == kind)
    assert isinstance(check.run(patient), Finding) == found


def test_a_fault_of_one_precision_alone_is_found() -> None:
    """Padding that only bfloat16's kernel reads moves rows by far more than its noise."""
    exact = Voice("embedkit", _rows(8, 0.0), 0.9999)  # type: ignore[arg-type]
    voice = Voice("embedkit", _rows(8, 0.5), 0.999, lambda: exact)  # type: ignore[arg-type]
    assert voice.in_company(("a", "b"))[1] is False


@pytest.mark.parametrize("name", ["padding", "batch", "norm"])
def test_rows_of_zeros_are_the_same_rows(name: str) -> None:
    """Of texts whose words a model does not know."""
    voice = Voice("embedkit", lambda texts, _: np.zeros((len(texts), 8), dtype=np.float32), 0.9999)
    patient: Any = SimpleNamespace(voices=[voice], encoder=SimpleNamespace(unit=True))
    check = next(check for check in CHECKS if check.name == name)
    assert isinstance(check.run(patient), str)


@pytest.mark.parametrize(
    ("prompts", "found"),
    [
        ({"query": "query : ", "passage": "dog "}, False),
        ({"query": "query : ", "clustering": "red "}, False),
        ({"clustering": "red "}, True),
        ({"query": "query : ", "search_document": "dog "}, True),
        ({"query": "", "document": ""}, False),
    ],
    ids=str,
)
def test_a_prompt_that_nothing_takes_is_found(prompts: dict[str, str], found: bool, tmp_path: Path) -> None:
    check = next(check for check in CHECKS if check.name == "prompt")
    assert isinstance(check.run(patient_of(patients.encoder(tmp_path, prompts=prompts))), Finding) is found


def test_a_prompt_taken_by_name_is_well(tmp_path: Path) -> None:
    folder = patients.prompt_of_another_name(tmp_path)
    assert doctor(folder, prompt_names={"query": "search_query"}).findings == []


@pytest.mark.parametrize(
    ("rules", "name"),
    [
        ([("A", 0)], "eos-missing"),
        ([("A", 0), ("¶", 1), ("¶", 1)], "eos-repeated"),
        ([("A", 0), ("¶", 1)], None),
    ],
    ids=["none", "two", "one"],
)
def test_one_closing_token_is_right(rules: list[tuple[str, int]], name: str | None, tmp_path: Path) -> None:
    whole = patients.decoder(tmp_path, "Mistral")
    stored = json.loads((whole / "tokenizer.json").read_text())
    template = [
        {"Sequence": {"id": "A", "type_id": 0}} if token == "A" else {"SpecialToken": {"id": token, "type_id": 0}}
        for token, _ in rules
    ]
    special = {"¶": {"id": "¶", "ids": [2], "tokens": ["¶"]}}
    stored["post_processor"] = {
        "type": "TemplateProcessing",
        "single": template,
        "pair": template,
        "special_tokens": special,
    }
    stored["post_processor"]["pair"] = [*template, {"Sequence": {"id": "B", "type_id": 1}}]
    (whole / "tokenizer.json").write_text(json.dumps(stored))
    check = next(check for check in CHECKS if check.name == "closing token")
    result = check.run(patient_of(whole, backend="torch"))
    assert (result.name if isinstance(result, Finding) else None) == name


def test_a_token_without_an_embedding_is_found(tmp_path: Path) -> None:
    """The padding token, added to a decoder's tokenizer and not to its embeddings."""
    patients.save(tmp_path, "Llama", patients.letters(tmp_path), num_key_value_heads=2)
    whole = patients.wrap(tmp_path, "lasttoken")
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(whole), device="cpu")
    model.tokenizer.add_special_tokens({"pad_token": "<new>"})
    check = next(check for check in CHECKS if check.name == "vocabulary")
    result = check.run(patient_of(model))
    assert isinstance(result, Finding)
    assert result.name == "tokens-without-embedding"
    assert f"'<new>' the id {len(patients.LETTERS)}" in result.evidence


@pytest.mark.parametrize(
    ("words", "prompt", "found"),
    [
        ([], "red cat ", "most tokens of any script"),
        (["the", "house", "stands", "on", "hill"], "red cat ", None),
        (["the", "house", "stands", "on", "hill"], "Darstellung: ", "of the prompt 'query'"),
    ],
)
def test_words_that_a_real_vocabulary_does_not_know_are_found(
    words: list[str], prompt: str, found: str | None, tmp_path: Path
) -> None:
    """A thousand tokens that no text has, and the words."""
    vocabulary = [*patients.TINY_VOCABULARY[:5], "red", "cat", *words, *(f"qx{i}" for i in range(1000))]
    patients.save(tmp_path, "Bert", patients.wordpiece(tmp_path, vocabulary))
    check = next(check for check in CHECKS if check.name == "vocabulary")
    result = check.run(patient_of(patients.wrap(tmp_path, prompts={"query": prompt}), backend="torch"))
    if found is None:
        assert str(result).startswith("more than half unknown: accented Latin, Russian, Greek")
    else:
        assert isinstance(result, Finding) and result.name == "unknown-tokens"
        assert found in result.evidence


class LastIndex(torch.nn.Module):
    """Pooling as model cards often write it: whatever stands in the last place."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        features["sentence_embedding"] = features["token_embeddings"][:, -1]
        return features


@pytest.mark.parametrize(("side", "found"), [("right", ["pooled-padding"]), ("left", [])])
def test_a_pooling_of_ones_own_is_told_by_the_state_that_it_takes(side: str, found: list[str], tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    stored = SentenceTransformer(str(patients.decoder(tmp_path, tokenizer={"padding_side": side})), device="cpu")
    model = SentenceTransformer(modules=[stored[0], LastIndex()], device="cpu")
    assert [finding.name for finding in doctor(model).findings] == found


def test_a_mask_that_leaves_the_closing_token_out_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding with EOS, and a mask of all ids that are not it."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(patients.decoder(tmp_path, tokenizer={"pad_token": "¶"})), device="cpu")
    patient = patient_of(model)
    right = patient.model.preprocess

    def wrong(*arguments: Any, **settings: Any) -> Any:
        features = right(*arguments, **settings)
        features["attention_mask"] = (features["input_ids"] != 2).long()
        return features

    monkeypatch.setattr(patient.model, "preprocess", wrong)
    findings = examine(patient).findings
    assert [finding.name for finding in findings] == ["pooled-token"]
    assert "takes 's' and not '¶'" in findings[0].evidence


def test_static_embeddings_are_said_to_be_beyond_the_checks(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    patients.wordpiece(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    examination = doctor(SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu"))
    assert examination.findings == []
    assert examination.not_checked["attention direction"] == "the model has no transformer"


def test_a_check_that_fails_is_said_to_have_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = patient_of(patients.encoder(tmp_path))

    def fail(*_: Any) -> None:
        raise ValueError("a library's own words")

    monkeypatch.setattr(patient, "tokens", fail)
    (finding,) = examine(patient).findings
    assert finding[:2] == ("closing token", "The check failed (ValueError: a library's own words).")


def test_a_model_that_cannot_be_opened_is_refused_as_load_refuses_it() -> None:
    with pytest.raises(ModelError, match="There is no folder"):
        doctor("./missing")


def test_nothing_is_said_of_our_own_texts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are longer than the model takes, and have no prompts: the user's own first ones must still be told of."""
    folder = patients.encoder(tmp_path)
    encoder = load(folder.rename(folder.with_name("e5-tiny")))
    doctor(encoder)
    assert not caplog.records
    encoder.encode(["cat " * 100], kind="query")
    assert [record.getMessage().split(" ")[1:4] for record in caplog.records] == [
        ["stores", "no", "prompt"],
        ["of", "1", "texts"],
    ]


def test_a_first_look_opens_no_second_copy(tmp_path: Path) -> None:
    from embedkit.encoders.doctor.patient import Patient

    patient = Patient("tiny", load(patients.encoder(tmp_path)), None)
    with pytest.raises(NotChecked, match="opens it once"):
        _ = patient.model
