"""Fine-tune Frambicus by hand: a data set class, five epochs with a look at dev, a test with a report by class.

    python samples/walkthrough.py

The task is new to the model: where does an arrow point? Needs `edgemm[train]` and a clone; nothing is downloaded. The
same in one command is `edgemm finetune`, which also keeps the best epoch, resumes and writes a page.
"""

from __future__ import annotations

import argparse

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from edgemm.export.frambicus import FrambicusForQuestionAnswering, FrambicusProcessor, freeze
from edgemm.tasks.class_report import class_report

QUESTION = "where does the arrow point?"
WAYS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}


class Arrows(Dataset):
    """Pictures uint8 [224, 224, 3] of one arrow each, and the side it points to; the same for a seed."""

    def __init__(self, count: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.examples = [self._draw() for _ in range(count)]

    def _draw(self) -> tuple[np.ndarray, str]:
        answer = str(self.rng.choice(list(WAYS)))
        picture = np.full((224, 224, 3), self.rng.integers(120, 256, 3), np.uint8)
        middle, half = self.rng.integers(80, 144, 2), int(self.rng.integers(40, 75))
        way = np.array(WAYS[answer]) * half
        colour = tuple(int(c) for c in self.rng.integers(0, 100, 3))
        thick = int(self.rng.integers(8, 16))
        cv2.arrowedLine(picture, tuple(middle - way), tuple(middle + way), colour, thick, cv2.LINE_AA, tipLength=0.5)
        return picture, answer

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        return self.examples[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", default="frambicus", help="a directory; by default the repository's own")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-3)
    options = parser.parse_args()

    torch.manual_seed(0)
    processor = FrambicusProcessor.from_pretrained(options.checkpoint)
    model = FrambicusForQuestionAnswering.from_pretrained(options.checkpoint)
    freeze(model, "detector")  # the towers are frozen already

    def inputs(rows: list[tuple[np.ndarray, str]], *, answered: bool = True) -> dict[str, torch.Tensor]:
        pictures, answers = zip(*rows, strict=True)
        text = [QUESTION] * len(rows)
        return processor(images=pictures, text=text, task="answer", targets=answers if answered else None)

    def said(rows: list[tuple[np.ndarray, str]]) -> list[str]:
        asked = inputs(rows, answered=False)
        ids = model.generate(**asked, max_new_tokens=4, do_sample=False)
        return processor.batch_decode(ids[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)

    train, dev, test = Arrows(192, seed=1), Arrows(48, seed=2), Arrows(96, seed=3)
    batches = DataLoader(train, batch_size=16, shuffle=True, collate_fn=inputs)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=options.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=options.epochs * len(batches))

    for epoch in range(1, options.epochs + 1):
        model.train()
        losses = []
        for batch in batches:
            loss = model(**batch, loss_only=True).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        model.eval()
        right = np.mean([a == b for a, (_, b) in zip(said(dev.examples), dev.examples, strict=True)])
        print(f"epoch {epoch}: loss {np.mean(losses):.3f}, dev accuracy {right:.1%}")

    report = class_report([answer for _, answer in test.examples], said(test.examples))
    print(f"\ntest: {'':6} precision  recall      f1  pictures")
    for name, scores in [*report.labels.items(), ("all", report.macro)]:
        print(f"{name:>12} {scores.precision:9.1f}% {scores.recall:6.1f}% {scores.f1:6.1f}% {scores.support:9}")


if __name__ == "__main__":
    main()
