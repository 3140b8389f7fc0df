"""Train Frambicus: the text half and the detector of samples/checkpoint/frambicus, over the towers beside it.

    python samples/recipes/frambicus_data.py --out data
    python samples/recipes/frambicus.py --data data --work runs --out samples/checkpoint/frambicus

Needs `edgemm[train]`. `edgemm finetune` learns all tasks together: boxes, captions, answers, clips, and which text
belongs to which picture; three times, each from the last one's weights with a learning rate that begins anew, the
third time without the detector, which would learn the scenes by heart. A run goes on after a kill when this is started
again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch

from edgemm.export.frambicus import FrambicusForQuestionAnswering, processor_of
from edgemm.export.frambicus.building import save_without_towers
from edgemm.export.frambicus.scenes import ScenesConfig, load_assets
from edgemm.export.text import compact

SEED = 0
RUNS: tuple[tuple[int, tuple[str, ...]], ...] = ((2000, ()), (2200, ()), (1400, ("--freeze", "detector")))
CHOICES = (
    *("--lr", "1e-3", "--warmup", "0.03", "--weight-decay", "0.03", "--precision", "bf16"),
    *("--batch", "32", "--workers", "1", "--save-every", "250"),
    *("--evaluate-every", "1000", "--evaluate-limit", "120", "--max-new-tokens", "32"),
)


def build(data: Path, work: Path, out: Path) -> None:
    """Train where that is not finished, then write the checkpoint."""
    trained = work / "untrained"
    if not trained.exists():
        _draw(trained, data)
    for number, (steps, own) in enumerate(RUNS, 1):
        before, trained = trained, work / f"trained-{number}"
        if not trained.exists():
            command = ["finetune", str(before), "--data", str(data / "mixture"), "-o", str(trained)]
            more = ["--steps", str(steps), *own, "--tower-cache", str(work / "towers")]
            subprocess.run(["edgemm", *command, *CHOICES, *more], check=True)
    model = FrambicusForQuestionAnswering.from_pretrained(trained)
    save_without_towers(model, out, "..")
    processor_of().save_pretrained(out)
    tokenizer = out / "tokenizer.json"
    tokenizer.write_bytes(compact(tokenizer.read_bytes()))


def _draw(path: Path, data: Path) -> None:
    torch.manual_seed(SEED)
    labels = load_assets(data / "assets").pool(ScenesConfig(), "train")
    FrambicusForQuestionAnswering.from_towers(labels=labels).save_pretrained(path)
    processor_of().save_pretrained(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="what frambicus_data.py wrote")
    parser.add_argument("--work", type=Path, required=True, help="the folder of the runs")
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint's directory")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # the processes that read data share the cores
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "20000")  # each shape's kernels are compiled once
    try:
        build(options.data, options.work, options.out)
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    return 0


if __name__ == "__main__":
    sys.exit(main())
