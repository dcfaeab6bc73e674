"""How fast a CLIP reads image files, and how much of that is decoding; regenerates a table of eval/README.md.

    python eval/images.py [--data FOLDER] [--threads N] [--images N] [--only NAME ...]

FOLDER (or EMBEDKIT_DATA) holds `flickr8k_1k` (photographs, JPEG) and `emoji_images` (PNG of 72 x 72). The model is a CLIP of the
shape of ViT-B/32 (12 layers of 768, images of 224 pixels in patches of 32) with random weights: speed does not depend on them,
and none has to be fetched. For each collection and dtype, on the same files:

  embedkit                encode(paths): files read, decoded and resized in threads while a batch is computed
  sentence-transformers   encode(paths as strings), which decodes each batch before it computes it; in the same dtype
  decoding                reading and decoding alone, and with the processor's resizing and normalising, one image after the other

in turn, medians of five, of the clock and of processor time. The difference is the largest of a unit row's number from
sentence-transformers' row of the same image opened by Pillow, in the same dtype.
A row is written to images.jsonl at once, and one that stands there for this version of embedkit is not measured again; remove
the file to measure anew. About six minutes on two cores with 128 images.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import embedkit
from embedkit.encoders.images import rgb
from embedkit.eval.report import replace_table
from embedkit.types import Picture

HERE = Path(__file__).parent
ROWS = HERE / "images.jsonl"
REPEATS = 5
BATCH = 32  # sentence-transformers' default
COLLECTIONS = {"photographs": "flickr8k_1k", "emoji": "emoji_images"}
DTYPES = ("float32", "bfloat16")
MEASUREMENTS = [f"{name}, {dtype}" for name in COLLECTIONS for dtype in DTYPES]
Row = dict[str, Any]


def vit_b_32(folder: Path) -> Path:
    """A CLIP of that shape with random weights and letters for a vocabulary, as transformers saves one."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)
    torch.manual_seed(0)
    text = {"vocab_size": len(tokens), "bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1}
    CLIPModel(CLIPConfig(text_config=text)).save_pretrained(folder)  # whose defaults are ViT-B/32
    CLIPProcessor(CLIPImageProcessorPil(), tokenizer).save_pretrained(folder)
    return folder


def files(data: Path, collection: str, count: int, folder: Path) -> list[Path]:
    """The first images of a collection, as files."""
    documents = embedkit.read_corpus(data / collection / "data.parquet", embedkit.Fields(id="file"), limit=count)
    paths = []
    for number, document in enumerate(documents):
        assert document.image is not None
        paths.append(folder / f"{collection}-{number}{Path(document.id).suffix}")
        paths[-1].write_bytes(document.image.image)
    return paths


def timed(way: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock and of processor time over all threads."""
    clock, processor = time.perf_counter(), time.process_time()
    way()
    return time.perf_counter() - clock, time.process_time() - processor


def measured(model: Path, paths: list[Path], dtype: str, threads: int) -> Row:
    import torch
    from sentence_transformers import SentenceTransformer

    encoder = embedkit.load(model, dtype=dtype, threads=threads)
    reference = SentenceTransformer(str(model), device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
    strings = [str(path) for path in paths]
    process = reference[0].processor.image_processor

    def decode() -> list[Any]:
        return [rgb(Picture(path)) for path in paths]

    def sentence_transformers(inputs: list[Any] = strings) -> Any:
        rows = reference.encode(inputs, batch_size=BATCH, convert_to_tensor=True, show_progress_bar=False)
        return rows.float().numpy()

    ways = {
        "embedkit": lambda: encoder.encode(paths),
        "sentence-transformers": sentence_transformers,
        "decoding": decode,
        "decoding and processor": lambda: [process(image, return_tensors="pt") for image in decode()],
    }
    theirs = sentence_transformers([Image.open(path) for path in paths])  # of paths it drops the transparency
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    difference = float(abs(encoder.encode(paths) - theirs).max())
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(REPEATS):  # in turn, so that a drift of the machine's speed meets everybody
        for name, way in ways.items():
            spent[name].append(timed(way))
    medians = {name: [statistics.median(times) for times in zip(*spent[name], strict=True)] for name in ways}
    pixels = statistics.median(image.width * image.height for image in decode())
    return {"images": len(paths), "pixels": pixels, "difference": difference, "seconds": medians}


def table(rows: dict[str, Row]) -> list[str]:
    lines = [
        "| files | dtype | embedkit, images/s | sentence-transformers, images/s | x | x, processor time | decoding, share | with "
        "the processor's work | largest difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        kind, dtype = name.split(", ")
        (ours, our_work), (theirs, their_work) = (row["seconds"][who] for who in ("embedkit", "sentence-transformers"))
        shares = [row["seconds"][part][1] / our_work for part in ("decoding", "decoding and processor")]
        lines.append(
            f"| {row['images']} {kind} of {row['pixels']:,.0f} pixels | {dtype} | {row['images'] / ours:.1f} | "
            f"{row['images'] / theirs:.1f} | {theirs / ours:.2f} | {their_work / our_work:.2f} | {shares[0]:.1%} | "
            f"{shares[1]:.1%} | {row['difference']:.1e} |"
        )
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, default=os.environ.get("EMBEDKIT_DATA"))
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--images", type=int, default=128)
    arguments.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=MEASUREMENTS)
    options = arguments.parse_args()
    if options.data is None or not Path(options.data).is_dir():
        raise SystemExit("Skipped: give the folder of the collections with --data or EMBEDKIT_DATA.")
    stored = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    rows = {row["measurement"]: row for row in stored if row["version"] == embedkit.__version__}
    with tempfile.TemporaryDirectory() as scratch:
        model = vit_b_32(Path(scratch) / "clip")
        for name in options.only:
            if name not in rows:
                kind, dtype = name.split(", ")
                paths = files(Path(options.data), COLLECTIONS[kind], options.images, Path(scratch))
                row = {"measurement": name, "version": embedkit.__version__, "threads": options.threads}
                rows[name] = row | measured(model, paths, dtype, options.threads)
                with ROWS.open("a") as stream:
                    stream.write(json.dumps(rows[name]) + "\n")
                print(json.dumps(rows[name]), flush=True)
    replace_table(HERE / "README.md", "images", table({name: rows[name] for name in MEASUREMENTS if name in rows}))


if __name__ == "__main__":
    main()
