"""Options that say how to generate, for the verbs that do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemm.errors import UsageError

if TYPE_CHECKING:
    from edgemm.decoding.options import Generation

PANEL = "Generation (by default as the checkpoint says, and greedy)"
MaxNewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="The longest text.", rich_help_panel=PANEL)
]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", min=0.0, help="Draw tokens; 0 takes the likeliest.", rich_help_panel=PANEL),
]
TopK = Annotated[int | None, typer.Option("--top-k", min=0, help="Draw from so many.", rich_help_panel=PANEL)]
TopP = Annotated[float | None, typer.Option("--top-p", help="Draw from this share.", rich_help_panel=PANEL)]
Seed = Annotated[int, typer.Option("--seed", min=0, help="The same seed draws the same.", rich_help_panel=PANEL)]
Beams = Annotated[
    int | None, typer.Option("--beams", min=1, help="Sentences searched at a time.", rich_help_panel=PANEL)
]
RepetitionPenalty = Annotated[
    float | None, typer.Option("--repetition-penalty", help="Over 1: say less again.", rich_help_panel=PANEL)
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="Ends the text. Repeatable.", rich_help_panel=PANEL),
]
Schema = Annotated[
    Path | None,
    typer.Option("--schema", metavar="FILE.json", help="JSON schema of the answer.", rich_help_panel=PANEL),
]


def asked(*, stop: list[str] | None, schema: Path | None, **options: Any) -> Generation:
    """The options of a command line as one object. Raises UsageError for what is out of range or contradicts itself."""
    from edgemm.decoding.options import Generation
    from edgemm.errors import InputError

    try:
        return Generation(stop=stop or (), schema=None if schema is None else _read(schema), **options)
    except InputError as error:
        raise UsageError(error.message, hint=error.hint) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="check --schema") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}", hint="check --schema") from error
    if not isinstance(schema, dict):
        raise UsageError(f"{path} holds no JSON object", hint="a schema begins with {")
    return schema
