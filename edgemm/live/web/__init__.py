"""The live page: a run in a browser."""

from edgemm.live.web.sink import WebSink

__all__ = ["WebSink"]
