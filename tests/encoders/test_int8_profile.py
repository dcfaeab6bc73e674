"""The int8 profile: its graph against the same arithmetic in numpy, its calibration against torch, its space, its refusals."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.encoders import load
from embedkit.encoders.model_files import ModelFiles, read_model_files
from embedkit.errors import ModelError, UsageError
from embedkit.jobs import add_to_index, build_index, embed_corpus, open_index

pytest.importorskip("openvino")
from embedkit.encoders import int8_profile

WORDS = ["cat", "dog", "fish", "bird", "red", "blue", "one", "two", "run", "swim"]
generator = np.random.default_rng(0)
TEXTS = list(dict.fromkeys(" ".join(generator.choice(WORDS, size=generator.integers(1, 20))) for _ in range(80)))
QUESTIONS = ["cat red", "two fish swim", "a bird", "dog dog dog run one"]
needs_vnni = pytest.mark.skipif(not int8_profile.int8_is_exact(), reason="this CPU's int8 sums overflow")


@pytest.fixture(scope="module")
def fast(tiny_model: Path) -> Any:
    if not int8_profile.int8_is_exact():
        pytest.skip("this CPU's int8 sums overflow")
    return load(tiny_model, profile="fast", calibrate=TEXTS, dtype="float32")


def files_of(folder: Path) -> ModelFiles:
    files = read_model_files(folder)
    assert files is not None
    return files


def norm(states: np.ndarray, files: ModelFiles, name: str) -> np.ndarray:
    centred = states - states.mean(axis=-1, keepdims=True)
    unit = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + files.config["layer_norm_eps"])
    return unit * files.tensors[f"{name}.weight"] + files.tensors[f"{name}.bias"]


def gelu(states: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return states * (1 + erf(states / np.sqrt(2))) / 2


def row_of(files: ModelFiles, ids: list[int], linear: Callable[[np.ndarray, str], np.ndarray]) -> np.ndarray:
    """BERT for one text, in numpy: the mean of its states, at length 1."""
    stored, heads = files.tensors, files.config["num_attention_heads"]
    words, positions, kinds = (
        stored[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
    )
    states = norm(words[ids] + positions[: len(ids)] + kinds[0], files, "embeddings.LayerNorm")
    for number in range(files.config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        parts = [linear(states, f"{layer}.attention.self.{part}") for part in ("query", "key", "value")]
        query, key, value = (part.reshape(len(ids), heads, -1).transpose(1, 0, 2) for part in parts)
        scores = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1])
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (shares / shares.sum(axis=-1, keepdims=True)) @ value
        attended = linear(mixed.transpose(1, 0, 2).reshape(len(ids), -1), f"{layer}.attention.output.dense")
        states = norm(states + attended, files, f"{layer}.attention.output.LayerNorm")
        inner = gelu(linear(states, f"{layer}.intermediate.dense"))
        states = norm(states + linear(inner, f"{layer}.output.dense"), files, f"{layer}.output.LayerNorm")
    pooled = states.mean(axis=0)
    return np.asarray(pooled / np.linalg.norm(pooled))


def integer_products(files: ModelFiles, profile: dict[str, Any]) -> Callable[[np.ndarray, str], np.ndarray]:
    """Products of uint8 activations and int8 weights, summed as integers."""
    places = int8_profile.Calibration.of(profile, files).by_place(files)

    def linear(states: np.ndarray, name: str) -> np.ndarray:
        place = name.rpartition(".")[0] if name.endswith(("query", "key", "value")) else name
        low, high, scales = places[place]
        step = (high - low) / 255
        codes = np.rint((np.clip(states / scales, low, high) - low) / step).astype(np.int64)
        weight = files.tensors[f"{name}.weight"] * scales
        steps = np.abs(weight).max(axis=1) / 127
        rounded = np.rint(weight / steps[:, None]).astype(np.int64)
        sums = (codes @ rounded.T) * step + low * rounded.sum(axis=1)
        return np.asarray(sums * steps + files.tensors[f"{name}.bias"])

    return linear


def test_rows_are_those_of_integer_arithmetic(tiny_model: Path, fast: Any) -> None:
    """OpenVINO's int8 products against numpy's; what is left between them is a code here and there that was rounded the other
    way, far less than what quantisation itself moved."""
    files = files_of(tiny_model)
    linear = integer_products(files, fast.settings["profile"])
    expected = np.stack([row_of(files, files.tokenizer.encode(text).ids, linear) for text in QUESTIONS])
    exact = load(tiny_model, dtype="float32").encode(QUESTIONS)
    found = fast.encode(QUESTIONS)
    moved = np.linalg.norm(exact - expected, axis=1)
    assert np.all(moved > 1e-4)
    assert np.all(np.linalg.norm(found - expected, axis=1) < moved / 3)


def test_the_products_are_int8(fast: Any) -> None:
    """Where the model runs, and not FakeQuantize around products of floats: six a layer."""
    model = fast._opened.backend._compiled("LATENCY")
    facts = [node.get_rt_info() for node in model._model.get_runtime_model().get_ordered_ops()]
    products = [
        fact["runtimePrecision"].astype(str) for fact in facts if fact["layerType"].astype(str) == "FullyConnected"
    ]
    assert len(products) == 12 and set(products) <= {"u8", "i8"}


def test_calibration_sees_what_torch_computes(tiny_model: Path, fast: Any) -> None:
    """The ranges of half the texts, from forward hooks on the model of transformers."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(tiny_model).eval(), AutoTokenizer.from_pretrained(tiny_model)
    seen: dict[str, list[np.ndarray]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.startswith("encoder"):
            module.register_forward_pre_hook(
                lambda _, given, name=name: seen.setdefault(name, []).append(given[0][0].numpy())
            )
    with torch.inference_mode():
        for text in TEXTS[::2]:
            model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=32))
    calibration = int8_profile.Calibration.of(fast.settings["profile"], files_of(tiny_model))
    for place, (low, high, scales) in calibration.by_place(files_of(tiny_model)).items():
        states = np.concatenate(seen[f"{place}.query" if place.endswith("self") else place]) / scales
        np.testing.assert_allclose([low, high], [min(states.min(), 0), max(states.max(), 0)], rtol=2e-3)


def test_scales_share_a_wide_channel_out(make_model: Callable[..., Path]) -> None:
    """A channel that swings a thousand times as far as the others costs them their codes, where it is not scaled down."""
    from safetensors.numpy import load_file, save_file

    folder = make_model(seed=3)
    stored = load_file(folder / "model.safetensors")
    for layer in range(2):
        for part, factor in (("attention.output.LayerNorm.weight", 300.0), ("attention.output.LayerNorm.bias", 300.0)):
            stored[f"encoder.layer.{layer}.{part}"][5] *= factor
        stored[f"encoder.layer.{layer}.intermediate.dense.weight"][:, 5] /= 300
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    profile = load(folder, profile="fast", calibrate=TEXTS).settings["profile"]
    *_, scales = int8_profile.Calibration.of(profile, files_of(folder)).by_place(files_of(folder))[
        "encoder.layer.0.intermediate.dense"
    ]
    assert scales[5] > 50 * np.median(scales)


def test_the_space_has_a_name_of_its_own_and_opens_again_without_texts(tiny_model: Path, fast: Any) -> None:
    plain = load(tiny_model, dtype="float32")
    again = load(**json.loads(json.dumps(fast.settings)), dtype="float32")
    other = load(tiny_model, profile="fast", calibrate=TEXTS[:40])
    assert again.fingerprint == fast.fingerprint
    assert again.settings == fast.settings
    assert len({plain.fingerprint, fast.fingerprint, other.fingerprint}) == 3
    np.testing.assert_array_equal(again.encode(QUESTIONS), fast.encode(QUESTIONS))
    assert "profile" not in plain.settings


def test_agreement_is_measured_on_texts_held_out_and_said(
    tiny_model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = int8_profile.calibrated
    monkeypatch.setattr(
        int8_profile,
        "calibrated",
        lambda files, pieces, **options: (
            seen.extend(len(piece.text) for piece in pieces) or original(files, pieces, **options)
        ),
    )
    with caplog.at_level(logging.INFO, logger="embedkit"):
        fast = load(tiny_model, profile="fast", calibrate=[*TEXTS, *TEXTS, " "], dtype="float32")
    held = TEXTS[1::2]
    cosines = (fast.encode(held) * load(tiny_model, dtype="float32").encode(held)).sum(axis=1)
    (line,) = [record.getMessage() for record in caplog.records if "int8" in record.getMessage()]
    assert f"on {len(held)} texts held out: mean cosine {cosines.mean():.4f}, smallest {cosines.min():.4f}," in line
    assert seen == [len(text) for text in TEXTS[::2]]


def test_agreement_counts_nearest_neighbours() -> None:
    rows = np.eye(4, dtype=np.float32)
    rows[1] = [0.9, 0.1, 0, 0]
    rows[3] = [0, 0, 0.8, 0.2]
    turned = rows.copy()
    turned[3] = [0.8, 0, 0.2, 0]  # now nearest to the first, whose own nearest is still the second
    cosine = 0.8 * 0.2 / (0.8**2 + 0.2**2)
    np.testing.assert_allclose(int8_profile.agreement(rows, turned), [(3 + cosine) / 4, cosine, 0.75], rtol=1e-6)


@needs_vnni
def test_a_poor_agreement_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_profile, "LEAST_COSINE", 1.1)
    with pytest.raises(ModelError, match=r"mean cosine .* at least 1\.1 is expected; leave profile='fast' out"):
        load(tiny_model, profile="fast", calibrate=TEXTS)


@needs_vnni
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "fast"}, "without texts to calibrate with; give profile='fast' and calibrate=TEXTS"),
        ({"calibrate": TEXTS}, "profile=None came with texts"),
        ({"profile": "slow", "calibrate": TEXTS}, "profile='slow' came with texts"),
        (
            {"profile": "fast", "calibrate": TEXTS[:5] * 9},
            "5 different texts came to calibrate with; expected at least 16",
        ),
        ({"profile": "fast", "calibrate": "cat"}, "1 different texts"),
        ({"profile": "fast", "calibrate": 7}, "calibrate=7 came; expected an iterable of strings"),
        ({"profile": "fast", "calibrate": [*TEXTS, None]}, "Among the texts to calibrate with stands None"),
        (
            {"profile": "fast", "calibrate": TEXTS, "backend": "torch"},
            "run by OpenVINO on the CPU, not for .*backend='torch'",
        ),
        ({"profile": "fast", "calibrate": TEXTS, "dtype": "float16"}, "dtype='float16'"),
        ({"profile": {"name": "fast"}}, "does not belong to"),
        ({"profile": {"name": "fast", "ranges": [[0, 1]], "exponents": "AA=="}}, "does not belong to"),
    ],
)
def test_what_cannot_be_is_refused(tiny_model: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(tiny_model, **options)


def test_other_families_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mpnet"}))
    with pytest.raises(UsageError, match="A profile is for BERT"):
        load(folder, profile="fast", calibrate=TEXTS)


def test_a_cpu_whose_sums_overflow_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_profile, "int8_is_exact", lambda: False)
    with pytest.raises(UsageError, match="VNNI"):
        load(tiny_model, profile="fast", calibrate=TEXTS)


def test_an_index_is_searched_and_added_to_in_its_own_space(tiny_model: Path, fast: Any, tmp_path: Path) -> None:
    """Opened by what its manifest holds: the rows of a stored text and of the same question are one."""
    build_index(TEXTS, tmp_path / "an.index", model=fast).close()
    add_to_index(tmp_path / "an.index", [{"id": "new", "text": "red bird one"}])
    with open_index(tmp_path / "an.index", dtype="float32") as index:
        assert index.encoder().fingerprint == fast.fingerprint
        hits = index.search(["red bird one", TEXTS[3]], k=1)
    assert hits.ids[0] == ["new"]
    np.testing.assert_allclose(hits.scores, 1, atol=2e-3)


def test_workers_open_the_same_space(tiny_model: Path, fast: Any, tmp_path: Path) -> None:
    manifest = embed_corpus(TEXTS, tmp_path / "x.npy", fast, workers=2)
    assert manifest["fingerprint"] == fast.fingerprint
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), fast.encode(TEXTS), atol=2e-3)
