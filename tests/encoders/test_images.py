"""Images through the encoder: what becomes of each kind of file, and rows that are those of sentence-transformers."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import embedkit
from embedkit.corpus.images import IMAGE_SUFFIXES
from embedkit.encoders.images import FORMATS, rgb
from embedkit.errors import DataError, MissingDependency, ModelError, UsageError
from embedkit.types import Picture
from tests.image_models import encoded, make_clip, picture, write_pictures

PICTURES = [picture(i, 24 + 5 * (i % 7), 24 + 3 * (i % 5)) for i in range(70)]  # two batches


def reference(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def clip(clip_model: Path) -> Any:
    return embedkit.load(clip_model, dtype="float32")


@pytest.fixture(scope="module")
def vlm(vlm_model: Path) -> Any:
    return embedkit.load(vlm_model, dtype="float32")


# --- rows ---------------------------------------------------------------------------------------------------------------


def test_images_and_texts_of_a_clip_have_the_rows_of_sentence_transformers(clip: Any, clip_model: Path) -> None:
    model = reference(clip_model)
    wanted = model.encode(PICTURES, normalize_embeddings=True)
    assert np.ptp(wanted @ wanted.T) > 0.1, "the images must differ for the model"
    np.testing.assert_allclose(clip.encode(PICTURES), wanted, atol=1e-5)
    texts = ["a cat", "dogs and a bird"]
    np.testing.assert_allclose(clip.encode(texts), model.encode(texts, normalize_embeddings=True), atol=1e-5)


def test_a_vlm_reads_images_texts_and_both_in_the_order_they_came(vlm: Any, vlm_model: Path) -> None:
    model = reference(vlm_model)
    some = PICTURES[:7]
    inputs = [*some, "red cat", *({"image": image, "text": "red dog"} for image in some), "blue"]
    inputs += [{"text": "a", "image": some[0]}]
    wanted = np.concatenate([model.encode([item]) for item in inputs])  # one at a time, without padding
    assert abs(wanted[8] - wanted[0]).max() > 1e-2, "the text must move the row"
    np.testing.assert_allclose(vlm.encode(inputs), wanted, atol=1e-5)
    with_prompt = model.encode(some[:2], prompt="blue dog : ")
    np.testing.assert_allclose(vlm.encode(some[:2], prompt="blue dog : "), with_prompt, atol=1e-5)


def test_neither_order_nor_company_nor_the_form_of_an_image_matters(clip: Any, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path, 70)
    rows = clip.encode(paths)
    np.testing.assert_allclose(clip.encode(paths[::-1])[::-1], rows, atol=1e-6)
    np.testing.assert_allclose(clip.encode(["a cat", *paths[:3], "a dog"])[1:4], rows[:3], atol=1e-6)
    np.testing.assert_allclose(clip.encode(paths[4]), rows[4:5], atol=1e-6)
    np.testing.assert_allclose(clip.encode([Image.open(path) for path in paths]), rows, atol=1e-6)
    np.testing.assert_allclose(clip.encode(PICTURES, batch_size=1), rows, atol=1e-6)
    np.testing.assert_allclose(embedkit.embed({"image": paths[0]}, clip), rows[:1], atol=1e-6)


def test_half_precision_keeps_the_rows(clip: Any, clip_model: Path) -> None:
    half = embedkit.load(clip_model, dtype="bfloat16", backend="torch")
    assert (half.encode(PICTURES[:9]) * clip.encode(PICTURES[:9])).sum(axis=1).min() > 0.99


def test_a_string_is_always_text(clip: Any, clip_model: Path, tmp_path: Path, no_network: None) -> None:
    """sentence-transformers takes an address, a path or a data URI for an image, and fetches it."""
    (path,) = write_pictures(tmp_path, 1)
    strings = [str(path), "https://localhost/a.png", "data:image/png;base64,AAAA"]
    wanted = reference(clip_model).encode([{"text": text} for text in strings], normalize_embeddings=True)
    np.testing.assert_allclose(clip.encode(strings), wanted, atol=1e-5)


# --- inputs that are refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([{"image": "a.png"}], "Input 0 has a str as image .* a string is always text"),
        (["a", {"picture": 1}], "Input 1 is a dict"),
        ([{}], "Input 0 is a dict"),
        ([{"text": Path("a.png")}], "Input 0 has a PosixPath as text"),
        ([b"bytes"], "Input 0 is a bytes"),
        (["a", {"image": picture(0), "text": "cat"}], "does not read texts together with images"),
    ],
)
def test_inputs_of_another_kind_are_refused_by_position(clip: Any, inputs: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        clip.encode(inputs)


def test_a_model_of_texts_says_that_it_reads_no_images(tiny_model: Path) -> None:
    encoder = embedkit.load(tiny_model, dtype="float32")
    with pytest.raises(UsageError, match="does not read images") as refused:
        encoder.encode(["cat", picture(0)])
    assert refused.value.position == 1
    assert encoder.encode({"text": "cat"}).shape == (1, 32)


def test_an_image_that_cannot_be_read_is_an_error_with_its_place(clip: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^Input 1: .*gone\.png cannot be read: No such file") as failed:
        clip.encode([picture(0), tmp_path / "gone.png"])
    assert failed.value.position == 1


def test_one_bad_image_costs_its_own_row(clip: Any) -> None:
    window: list[Any] = [Picture(image) for image in PICTURES[:30]]
    window[4], window[17] = Picture(b"", name="empty"), Picture(b"noise", name="noise")
    (found,) = clip.encode_windows([window])
    assert found.failed == {
        4: "empty cannot be read: it is empty (0 bytes)",
        17: "noise cannot be read: it is none of JPEG, PNG, WEBP, GIF, BMP, TIFF",
    }
    assert found.inputs.tolist() == [i for i in range(30) if i not in (4, 17)]
    np.testing.assert_allclose(found.rows, clip.encode(PICTURES[:30])[found.inputs], atol=1e-6)
    (found,) = clip.encode_windows([[Picture(b"", name="a"), Picture(b"", name="b")]])
    assert (len(found.rows), sorted(found.failed)) == (0, [0, 1])


def test_an_image_that_the_processor_refuses_costs_its_own_row(clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = clip._opened.backend._model
    preprocess = model.preprocess

    def narrow(inputs: list[Any], **options: Any) -> Any:
        if any(item["image"].width == 1 for item in inputs):
            raise ValueError("absolute aspect ratio must be smaller than 200")
        return preprocess(inputs, **options)

    monkeypatch.setattr(model, "preprocess", narrow)
    window = [Picture(PICTURES[0]), Picture(picture(1, 1, 300), name="thin.png"), Picture(PICTURES[2])]
    (found,) = clip.encode_windows([window])
    assert found.inputs.tolist() == [0, 2] and "refuses <image thin.png>: absolute aspect ratio" in found.failed[1]
    monkeypatch.setattr(model, "preprocess", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("a defect")))
    with pytest.raises(RuntimeError, match="a defect"):
        clip.encode(PICTURES[:2])


def test_an_image_without_a_number_names_itself(clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = clip._opened.backend
    monkeypatch.setattr(type(backend), "_rows", lambda self, batch, _: np.full((len(batch.pieces), 16), np.nan))
    with pytest.raises(ModelError, match=r"gives NaN or infinity for <image a\.png>"):
        clip.encode([Picture(PICTURES[0], name="a.png")])


# --- pixels ---------------------------------------------------------------------------------------------------------------


def turned(image: Image.Image) -> bytes:
    """As a camera held upright writes it: the pixels lie, and a tag says so."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    return encoded(image.transpose(Image.Transpose.ROTATE_90), exif=exif.tobytes())


def deep(values: np.ndarray) -> bytes:
    return encoded(Image.fromarray(values.astype(np.uint16)))


RED, WHITE = (255, 0, 0), (255, 255, 255)
HALF = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
HALF.paste((255, 0, 0, 255), (0, 0, 2, 4))  # the left half red, the right half clear
GRADIENT = np.arange(16).reshape(4, 4) * 4096


@pytest.mark.parametrize(
    ("content", "left", "right"),
    [
        (encoded(Image.new("RGB", (4, 4), RED)), RED, RED),
        (encoded(HALF), RED, WHITE),
        (encoded(HALF.convert("P")), RED, WHITE),
        (encoded(Image.new("LA", (4, 4), (0, 0))), WHITE, WHITE),
        (encoded(Image.new("P", (4, 4), 0)), (0, 0, 0), (0, 0, 0)),
        (encoded(Image.new("1", (4, 4), 1)), WHITE, WHITE),
        (encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"), RED, RED),
        (deep(np.full((4, 4), 40000)), (156, 156, 156), (156, 156, 156)),
    ],
    ids=["rgb", "rgba", "palette with transparency", "grey with alpha", "palette", "bits", "cmyk", "16 bits"],
)
def test_every_mode_becomes_rgb(content: bytes, left: Any, right: Any) -> None:
    image = rgb(Picture(content))
    assert (image.mode, image.getpixel((0, 0)), image.getpixel((3, 3))) == ("RGB", left, right)


def test_sixteen_bits_keep_their_order() -> None:
    grey = np.asarray(rgb(Picture(deep(GRADIENT))))[..., 0]
    assert (np.diff(grey.ravel().astype(int)) == 16).all()


def test_images_are_turned_as_their_exif_says_and_come_back_unchanged() -> None:
    upright = picture(0, 20, 10)
    assert np.array_equal(rgb(Picture(turned(upright))), upright)
    handed = Image.open(io.BytesIO(turned(upright)))
    assert np.array_equal(rgb(Picture(handed)), upright)
    assert handed.size == (10, 20) and handed.getexif()[0x0112] == 6


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, WHITE)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert rgb(Picture(content)).getpixel((0, 0)) == RED


def bomb() -> bytes:
    """The header of a PNG of 50,000 x 50,000 pixels."""
    content = bytearray(encoded(Image.new("1", (8, 8))))
    content[16:24] = struct.pack(">II", 50_000, 50_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"\x89PNG\r\n\x1a\n", "none of JPEG, PNG, WEBP, GIF, BMP, TIFF"),
        (b"a text", "none of JPEG, PNG, WEBP, GIF, BMP, TIFF"),
        (encoded(picture(0), "JPEG")[:-200], "truncated"),
        (encoded(picture(0))[:-200], "truncated"),
        (bomb(), "exceeds limit"),
        (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "32 bits"),
    ],
    ids=["empty", "header", "text", "cut jpeg", "cut png", "bomb", "float"],
)
def test_what_is_no_whole_image_says_why(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=f"^x cannot be read: .*{reason}"):
        rgb(Picture(content, name="x"))


@pytest.mark.parametrize("kind", ["EPS", "PPM", "TGA", "ICO", "PCX", "SGI", "PDF"])
def test_an_image_of_another_format_is_refused_whatever_its_name(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No program is started, as Pillow's reader of EPS starts Ghostscript."""
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was asked for"))
    with pytest.raises(DataError, match=r"^a\.png cannot be read: it is none of JPEG, PNG, WEBP, GIF, BMP, TIFF$"):
        rgb(Picture(encoded(picture(0), kind), name="a.png"))


def test_every_suffix_that_is_read_has_its_format() -> None:
    assert {Image.registered_extensions()[suffix] for suffix in IMAGE_SUFFIXES} == set(FORMATS)
    for kind in FORMATS:
        assert rgb(Picture(encoded(picture(0), kind))).size == picture(0).size


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pillows_limit_of_pixels_is_kept_where_it_only_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(picture(0, 20, 10))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    with pytest.raises(DataError, match="20 x 10 pixels are more than Pillow's limit of 150"):
        rgb(Picture(content))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert rgb(Picture(content)).size == (20, 10)


# --- the model ------------------------------------------------------------------------------------------------------------


def test_the_fingerprint_knows_the_processor_and_no_path(clip: Any, clip_model: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    same, other = make_clip(tmp_path / "same"), make_clip(tmp_path / "other", mean=(0.5, 0.4, 0.31))
    assert embedkit.load(same).fingerprint == clip.fingerprint
    assert embedkit.load(other).fingerprint != clip.fingerprint


def test_the_doctor_finds_nothing_wrong_with_models_that_read_images(clip: Any, vlm: Any) -> None:
    for encoder in (clip, vlm):
        examined = embedkit.doctor(encoder)
        assert examined.findings == []
        assert {"batch", "padding", "norm", "vocabulary"} <= set(examined.seen)


def test_without_pillow_one_sentence_says_what_to_install(clip_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers 5.23 says then, word for word; a process without Pillow takes seconds to say it."""

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("None of these classes could be imported. Missing optional dependencies: torchvision, Pillow.")

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", refuse)
    with pytest.raises(ModelError, match="Missing optional dependencies"):
        embedkit.load(clip_model)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(
        MissingDependency, match=r'reads images, which needs Pillow; install it: pip install -e "\.\[images\]"'
    ):
        embedkit.load(clip_model)
