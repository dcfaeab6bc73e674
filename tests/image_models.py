"""Images, and small models with random weights that read them: a CLIP and a LLaVA, as sentence-transformers saves them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE, PATCH = 32, 8  # pixels
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": PATCH,
}
WORDS = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "user", "system", ":", "cat", "dog", "red", "blue", *LETTERS]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<image> ' }}{% else %}{{ c['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
)


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """Noise on a colour of its own, so that no two are alike."""
    generator = np.random.default_rng(seed)
    colour = generator.integers(0, 200, 3)
    pixels = colour + generator.integers(0, 56, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def write_pictures(folder: Path, count: int) -> list[Path]:
    """p00.png, p01.png, ..., of several sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"p{i:02}.png" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(encoded(picture(i, 24 + 5 * (i % 7), 24 + 3 * (i % 5))))
    return paths


def make_clip(folder: Path, mean: Sequence[float] = (0.5, 0.4, 0.3)) -> Path:
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer

    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=24)
    text = {key: value for key, value in VISION.items() if key not in ("image_size", "patch_size")}
    text |= {"vocab_size": len(tokens), "max_position_embeddings": 24}
    text |= {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "pad_token_id": len(tokens) - 1}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16))
    spread(model)
    model.save_pretrained(folder / "plain")
    CLIPProcessor(image_processor(mean), tokenizer).save_pretrained(folder / "plain")
    SentenceTransformer(str(folder / "plain"), device="cpu").save_pretrained(
        str(folder / "clip"), create_model_card=False
    )
    return folder / "clip"


def make_vlm(folder: Path) -> Path:
    """Reads texts, images, and both in one input, through a chat template; the last token's state is the row."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlavaConfig, LlavaModel, LlavaProcessor, PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(WORDS)}
    rules = Tokenizer(models.WordPiece(ids, unk_token="<unk>", continuing_subword_prefix=""))  # type: ignore[call-arg]
    rules.pre_tokenizer = pre_tokenizers.Whitespace()
    rules.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 2), ("</s>", 3)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rules,
        model_max_length=128,
        extra_special_tokens={"image_token": "<image>"},
        **dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), WORDS, strict=False)),
    )
    processor = LlavaProcessor(
        image_processor(),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    text = {"model_type": "llama", "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}
    text |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    torch.manual_seed(0)
    vision = {"model_type": "clip_vision_model", **VISION}
    model = LlavaModel(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, vision_feature_layer=-1)
    )
    spread(model)
    model.save_pretrained(folder / "plain")
    processor.save_pretrained(folder / "plain")
    transformer = Transformer(str(folder / "plain"))
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), "lasttoken"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder / "vlm"), create_model_card=False)
    return folder / "vlm"


def image_processor(mean: Sequence[float] = (0.5, 0.4, 0.3)) -> Any:
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, image_mean=list(mean)
    )


def spread(model: Any) -> None:
    """Larger weights, so that different images have different rows."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
