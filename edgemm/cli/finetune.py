"""`edgemm finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgemm.cli.shared import Io, library
from edgemm.cli.shared import verb as as_verb
from edgemm.cli.training import options_of, train

_RUN, _STEP, _PART = "The run", "Every step", "What is trained"


def finetune(
    io: Io,
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT", help="A checkpoint's directory, a hub id (owner/name), or an adapter."),
    ],
    data: Annotated[Path, typer.Option("--data", help="A directory with metadata.jsonl, or one folder a class.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the trained checkpoint goes.")] = Path(
        "finetuned"
    ),
    task: Annotated[
        str | None,
        typer.Option("--task", help="transcribe, answer, caption, describe, classify, detect, embed, recommend."),
    ] = None,
    validation: Annotated[
        Path | None, typer.Option("--validation", help="Rows that steer the run; else a tenth of --data.")
    ] = None,
    test: Annotated[Path | None, typer.Option("--test", help="Rows that judge it; else a tenth of --data.")] = None,
    epochs: Annotated[float, typer.Option("--epochs", rich_help_panel=_RUN)] = 3.0,
    steps: Annotated[int, typer.Option("--steps", min=0, help="Instead of --epochs.", rich_help_panel=_RUN)] = 0,
    batch: Annotated[int, typer.Option("--batch", min=1, rich_help_panel=_STEP)] = 8,
    accumulate: Annotated[
        int, typer.Option("--accumulate", min=1, help="Batches whose gradients make one step.", rich_help_panel=_STEP)
    ] = 1,
    optimizer: Annotated[
        str, typer.Option("--optimizer", help="One of torch.optim's.", rich_help_panel=_STEP)
    ] = "AdamW",
    optimizer_option: Annotated[
        list[str] | None,
        typer.Option("--optimizer-option", help="Such as momentum=0.9. Repeatable.", rich_help_panel=_STEP),
    ] = None,
    lr: Annotated[float, typer.Option("--lr", help="The learning rate's peak.", rich_help_panel=_STEP)] = 5e-5,
    weight_decay: Annotated[float, typer.Option("--weight-decay", min=0.0, rich_help_panel=_STEP)] = 0.01,
    schedule: Annotated[
        str,
        typer.Option(
            "--schedule", help="cosine, linear, constant, … as transformers names them.", rich_help_panel=_STEP
        ),
    ] = "cosine",
    warmup: Annotated[float, typer.Option("--warmup", help="Share of all steps.", rich_help_panel=_STEP)] = 0.05,
    clip: Annotated[
        float, typer.Option("--clip", min=0.0, help="Norm of the gradients; 0: any.", rich_help_panel=_STEP)
    ] = 1.0,
    label_smoothing: Annotated[float, typer.Option("--label-smoothing", rich_help_panel=_STEP)] = 0.0,
    dropout: Annotated[
        float | None, typer.Option("--dropout", min=0.0, max=0.99, help="Else the checkpoint's.", rich_help_panel=_STEP)
    ] = None,
    precision: Annotated[str, typer.Option("--precision", help="fp32, bf16 or fp16.", rich_help_panel=_STEP)] = "fp32",
    augment: Annotated[
        bool, typer.Option("--augment", help="Vary pictures and sounds a little.", rich_help_panel=_STEP)
    ] = False,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            "--freeze", help="A stage (all, vision, encoder, …) or a pattern. Repeatable.", rich_help_panel=_PART
        ),
    ] = None,
    unfreeze: Annotated[
        list[str] | None,
        typer.Option("--unfreeze", help="After --freeze, such as head. Repeatable.", rich_help_panel=_PART),
    ] = None,
    lora: Annotated[int, typer.Option("--lora", min=0, help="Rank of adapters; 0: none.", rich_help_panel=_PART)] = 0,
    lora_target: Annotated[
        list[str] | None,
        typer.Option("--lora-target", help="Layers by their last name. Repeatable.", rich_help_panel=_PART),
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", help="What the best checkpoint is chosen by.", rich_help_panel=_RUN)
    ] = None,
    patience: Annotated[
        int,
        typer.Option("--patience", min=0, help="Evaluations without a better metric; 0: go on.", rich_help_panel=_RUN),
    ] = 0,
    evaluate_every: Annotated[
        int, typer.Option("--evaluate-every", min=0, help="Steps; 0: once an epoch.", rich_help_panel=_RUN)
    ] = 0,
    evaluate_limit: Annotated[
        int, typer.Option("--evaluate-limit", min=1, help="At most so many validation rows.", rich_help_panel=_RUN)
    ] = 256,
    save_every: Annotated[
        int,
        typer.Option(
            "--save-every", min=0, help="Steps; 0: once an epoch. A killed run goes on.", rich_help_panel=_RUN
        ),
    ] = 0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, rich_help_panel=_RUN)] = 64,
    tower_cache: Annotated[
        str,
        typer.Option(
            metavar="<path>",
            help="Where what frozen towers make of the media is kept, for other runs too; else until the end of this.",
            rich_help_panel=_RUN,
        ),
    ] = "",
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Processes that read data.", rich_help_panel=_RUN)
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", rich_help_panel=_RUN)] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the checkpoint that is there, or an unfinished run.")
    ] = False,
) -> None:
    """Train a checkpoint on a data set; report what it was worth on the test rows."""
    given = dict(locals())
    module: Any = library("train.finetune", extra="train")
    options = options_of(given)
    places = {"task": task, "validation": validation, "test": test, "overwrite": overwrite}
    train(io, lambda tell: module.finetune(checkpoint, data, output, options=options, progress=tell, **places))


verb = as_verb(finetune)
