"""`edgemm serve`."""

from __future__ import annotations

import os
import secrets
import threading
from typing import Annotated

import typer

from edgemm.cli import args
from edgemm.cli.shared import Io
from edgemm.cli.shared import verb as as_verb

TOKEN_VARIABLE = "EDGEMM_SERVE_TOKEN"


def serve(
    io: Io,
    bundle: args.BundleArgument = None,
    host: Annotated[
        str, typer.Option("--host", help="Beyond loopback a token is required: one is made and printed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    runtime: args.RuntimeOption = "auto",
    device: args.DeviceOption = "CPU",
    threads: args.ThreadsOption = 0,
    exact: args.ExactOption = None,
) -> None:
    """An OpenAI-compatible endpoint: chat with pictures and sound, transcriptions, embeddings. Ctrl-C ends it."""
    from edgemm.live.sinks.address import is_loopback
    from edgemm.serve.endpoint import Endpoint

    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token and not is_loopback(host):
        token = secrets.token_urlsafe(24)
        io.note(f"the API key is {token} (or set {TOKEN_VARIABLE})")
    model = args.load(io, bundle, runtime=runtime, device=device, threads=threads, exact=exact)
    with model, Endpoint(model, host, port, token=token) as endpoint:
        io.document({"url": endpoint.url, "model": model.name, "tasks": list(model.tasks)})
        io.show(f"{model.name} answers at {endpoint.url}")
        threading.Event().wait()


verb = as_verb(serve)
