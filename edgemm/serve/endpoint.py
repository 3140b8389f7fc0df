"""`edgemm serve`: chat, transcription and embeddings over HTTP, as OpenAI's clients call them."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import hmac
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from edgemm.errors import ContextFull, EdgemmError, InputError, SourceError, TaskUnavailable, missing_extra
from edgemm.live.sinks.address import cannot_serve, host_in, is_loopback
from edgemm.live.web.guard import server_log
from edgemm.processing.audio import load_audio
from edgemm.serve.answering import Answering, Reply
from edgemm.serve.requests import ChatRequest, chat_request, embedding_inputs, media
from edgemm.serve.transcripts import FORMATS, written

if TYPE_CHECKING:
    from aiohttp import web

    from edgemm.model import Model

_LOG = logging.getLogger(__name__)

BODY_BYTES = 32 << 20
WAITING = 16  # requests at once; more are told to come later
_STATUS = {InputError: 400, SourceError: 400, ContextFull: 400, TaskUnavailable: 404}  # else 500


class _Gone(EdgemmError):
    """Nobody waits for this answer any more: the client has left, or the endpoint closes."""


class _Ear:
    """Is told the pieces of one answer; raises where nobody waits for it any more."""

    def __init__(self, closing: threading.Event, put: Callable[[str], None]) -> None:
        self._closing, self._put = closing, put
        self.left = False

    def __call__(self, text: str) -> None:
        if self.left or self._closing.is_set():
            raise _Gone("the endpoint closes")
        self._put(text)


class Endpoint:
    """Serves one model at `http://host:port/v1` from a thread of its own, until `close`.

    With a `token` every request must carry it (`Authorization: Bearer …`, as clients send their API key). Requests
    that name another host, or that come from another site's page, are refused, so that no page in a browser reaches a
    robot's model. Raises SinkError where the address cannot be had, RuntimeUnavailable without aiohttp.
    """

    def __init__(self, model: Model, host: str = "127.0.0.1", port: int = 8000, *, token: str = "") -> None:
        try:
            import aiohttp  # noqa: F401
        except ImportError as error:
            raise missing_extra("aiohttp", "web", error) from error
        self._model, self._host, self._port, self._token = model, host, port, token
        self._ready: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._pool = concurrent.futures.ThreadPoolExecutor(WAITING, thread_name_prefix="edgemm-serve")
        self._busy = 0
        self._answering: Answering | None = None
        self._building, self._closing = threading.Lock(), threading.Event()
        self._since = int(time.time())
        self._thread = threading.Thread(target=self._run, name="edgemm-serve", daemon=True)
        self._thread.start()
        self.port = self._ready.result()

    @property
    def url(self) -> str:
        """What clients call their base URL."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}/v1"

    def close(self) -> None:
        """Ends what is being answered and every connection, within a second."""
        self._closing.set()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ending.set)
            self._thread.join()
        self._pool.shutdown(cancel_futures=True)
        if self._answering is not None:
            self._answering.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    # What follows runs in the event loop; what takes time is handed to the pool.

    async def _main(self) -> None:
        from aiohttp import web

        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()

        @web.middleware  # type: ignore[untyped-decorator]
        async def guarded(request: web.Request, handler: Callable[[web.Request], Any]) -> Any:
            return await self._guarded(request, handler)

        app = web.Application(middlewares=[guarded], client_max_size=BODY_BYTES)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name}", self._one_model)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/audio/transcriptions", self._transcribe)
        app.router.add_post("/v1/embeddings", self._embed)
        runner = web.AppRunner(
            app, access_log=None, logger=server_log(), shutdown_timeout=0.5, handler_cancellation=True
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._host, self._port)
            await site.start()
        except OSError as error:
            await runner.cleanup()
            self._ready.set_exception(cannot_serve(f"{self._host}:{self._port}", error))
            return
        self._ready.set_result(runner.addresses[0][1])
        await self._ending.wait()
        await runner.cleanup()

    async def _guarded(self, request: web.Request, handler: Callable[[web.Request], Any]) -> Any:
        """Who may ask; and every failure as OpenAI's error object."""
        from aiohttp import web

        refused = self._refusal(request)
        if refused is not None:
            return refused
        try:
            return await handler(request)
        except web.HTTPRequestEntityTooLarge:
            return _failed(413, f"the request has more than {BODY_BYTES >> 20} MiB")
        except web.HTTPException as error:
            return _failed(error.status, f"there is no {request.method} {request.path}")
        except EdgemmError as error:
            status = next((s for kind, s in _STATUS.items() if isinstance(error, kind)), 500)
            return _failed(status, str(error), error.code)
        except ConnectionError:  # the client has left
            raise
        except Exception as error:
            _LOG.exception("%s %s failed", request.method, request.path)
            return _failed(500, f"{type(error).__name__}: {error}")

    def _refusal(self, request: web.Request) -> web.StreamResponse | None:
        if self._token:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self._token.encode()):
                return _failed(401, "wrong or missing token: give it as the API key", "invalid_api_key")
            return None
        origin = request.headers.get("Origin")
        named = [host_in(f"//{request.headers.get('Host', '')}")]
        named += [host_in(origin)] if origin is not None else []
        if not all(is_loopback(name) or (name and name == self._host) for name in named):
            return _failed(403, "only programs and pages of this machine may ask")
        return None

    async def _do(self, work: Callable[[], Any]) -> Any:
        """`work` in the pool."""
        return await self._loop.run_in_executor(self._pool, work)

    async def _health(self, _: web.Request) -> web.StreamResponse:
        return _json({"status": "ok"})

    async def _models(self, _: web.Request) -> web.StreamResponse:
        return _json({"object": "list", "data": [self._card()]})

    async def _one_model(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name != self._model.name:
            return _failed(404, f"there is no model {name!r}: here is {self._model.name}", "model_not_found")
        return _json(self._card())

    def _card(self) -> dict[str, Any]:
        tasks = list(self._model.tasks)
        return {"id": self._model.name, "object": "model", "created": self._since, "owned_by": "edgemm", "tasks": tasks}

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request)
        if self._busy >= WAITING:
            return _failed(429, f"{WAITING} requests are being answered: ask again later", "rate_limit_exceeded")
        self._busy += 1
        try:
            asked = await self._do(lambda: chat_request(body))
            answer = await (self._streamed if asked.stream else self._whole)(request, asked)
        finally:
            self._busy -= 1
        return answer

    async def _whole(self, request: web.Request, asked: ChatRequest) -> web.StreamResponse:
        reply = await self._reply(asked, _Ear(self._closing, lambda _: None))
        message = {"role": "assistant", "content": reply.text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _end(reply)}
        return _json({**self._head("chat.completion"), "choices": [choice], **_usage(reply)})

    async def _streamed(self, request: web.Request, asked: ChatRequest) -> web.StreamResponse:
        """Server-sent events. What goes wrong before the first piece has a status of its own."""
        from aiohttp import web

        pieces: asyncio.Queue[str | None] = asyncio.Queue()

        def put(text: str) -> None:
            self._loop.call_soon_threadsafe(pieces.put_nowait, text)

        working = asyncio.ensure_future(self._reply(asked, _Ear(self._closing, put)))
        working.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            piece = await pieces.get()
            if piece is None:
                await working
            out = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
            await out.prepare(request)
            head = self._head("chat.completion.chunk")
            await _send(out, head | {"choices": [_delta({"role": "assistant", "content": ""})]})
            while piece is not None:
                await _send(out, head | {"choices": [_delta({"content": piece})]})
                piece = await pieces.get()
            try:
                reply = await working
            except EdgemmError as error:
                await _send(out, _error(str(error), 500, error.code))
                return out
            await _send(out, head | {"choices": [_delta({}, _end(reply))]})
            if asked.usage and reply.prompt_tokens is not None:
                await _send(out, head | {"choices": [], **_usage(reply)})
            await out.write(b"data: [DONE]\n\n")
            return out
        finally:
            working.cancel()

    async def _reply(self, asked: ChatRequest, ear: _Ear) -> Reply:
        """The answer. Where the client leaves, this is cancelled, and the answer ends at its next piece."""
        try:
            reply: Reply = await self._do(lambda: self._answers().reply(asked, ear))
            return reply
        finally:
            ear.left = True

    async def _transcribe(self, request: web.Request) -> web.StreamResponse:
        self._model.bundle.model_for("transcribe")
        if not request.content_type.startswith("multipart/"):
            raise InputError("the request is no form with a file", hint="send multipart/form-data with file and model")
        fields = await request.post()
        upload = fields.get("file")
        content = upload.file.read() if hasattr(upload, "file") else None
        if not content:
            raise InputError("there is no file", hint="send it as the field file")
        form = str(fields.get("response_format", "json"))
        if form not in FORMATS:
            raise InputError(f"response_format {form!r} is not known", hint=f"give one of {', '.join(FORMATS)}")
        words = "word" in fields.getall("timestamp_granularities[]", [])
        language = str(fields["language"]) if fields.get("language") else None

        def work() -> tuple[Any, float]:
            samples, rate_hz = media(content, "the file", load_audio)
            found = self._model.transcribe(samples, sample_rate_hz=rate_hz, language=language, words=words)
            return found, len(samples) / rate_hz

        transcript, seconds = await self._do(work)
        kind, text = written(form, transcript, seconds, language)
        return _text(text, kind)

    async def _embed(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request)
        packed = body.get("encoding_format", "float") == "base64" if isinstance(body, dict) else False

        def work() -> list[Any]:
            embed = self._model.embed
            given = embedding_inputs(body)
            return [(embed(text=i) if isinstance(i, str) else embed(i)).values for i in given]

        vectors = await self._do(work)
        data = [
            {"object": "embedding", "index": i, "embedding": _packed(v) if packed else v.tolist()}
            for i, v in enumerate(vectors)
        ]
        return _json({"object": "list", "model": self._model.name, "data": data})

    def _answers(self) -> Answering:
        with self._building:
            if self._answering is None:
                self._answering = Answering(self._model)
            return self._answering

    def _head(self, kind: str) -> dict[str, Any]:
        made = int(time.time())
        return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": made, "model": self._model.name}


async def _body(request: web.Request) -> Any:
    try:
        return json.loads(await request.read())
    except ValueError:
        raise InputError("the request is no JSON") from None


async def _send(out: web.StreamResponse, document: dict[str, Any]) -> None:
    await out.write(f"data: {json.dumps(document, ensure_ascii=False)}\n\n".encode())


def _delta(delta: dict[str, Any], end: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": end}


def _end(reply: Reply) -> str:
    return "length" if reply.cut else "stop"


def _usage(reply: Reply) -> dict[str, dict[str, int]]:
    """Left out where the model's prompt has no tokens."""
    if reply.prompt_tokens is None:
        return {}
    read, made = reply.prompt_tokens, reply.tokens
    return {"usage": {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}}


def _packed(values: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _json(document: dict[str, Any], status: int = 200) -> web.StreamResponse:
    return _text(json.dumps(document, ensure_ascii=False), "application/json", status)


def _text(text: str, kind: str, status: int = 200) -> web.StreamResponse:
    from aiohttp import web

    return web.Response(text=text, content_type=kind, charset="utf-8", status=status)


def _failed(status: int, message: str, code: str | None = None) -> web.StreamResponse:
    return _json(_error(message, status, code), status)


def _error(message: str, status: int, code: str | None) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
