"""One contender of peers_vlm.py, in a process and an environment of its own: run by it, never by hand.

    python benchmarks/peers_vlm_contenders.py WORK KIND NAME

KIND `graphs` times prefill, decoding and the vision tower; `answer` the whole way from a picture and a question to
words. Prints one line of JSON: milliseconds by what was timed. Every contender is greedy, on two threads, batch 1.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
THREADS, CONTEXT = 2, 1280
PREFILLS = {80: 3, 200: 2, 1000: 1}
"""Positions → times that they are read in a round."""
PASTS, STEPS, UNCOUNTED = (200, 1000), 32, 4
NEW_TOKENS, ANSWERS = 64, 2
QUESTION = "What can be seen here, and which colour has it, please?"


class Graphs(Protocol):
    """A decoder with its table of embeddings and its choice of the likeliest token; and a vision tower."""

    def reset(self) -> None:
        """Forget everything; not timed."""
        ...

    def read(self, ids: list[int]) -> int:
        """Append ids; the token that follows."""
        ...

    def step(self, token: int) -> int:
        """Append a token; the token that follows."""
        ...


class Edgemm:
    """The graphs of a bundle, as its tasks load and drive them."""

    def __init__(self, work: Path, runtime: str, precision: str) -> None:
        self.graphs = _edgemm(work, runtime, precision).task("answer")._graphs
        self.decoder, self.embed = self.graphs.decoder(), self.graphs.embed()
        if self.decoder.form != "lowered":
            raise SystemExit(f"not lowered: {self.decoder.reason}")

    def reset(self) -> None:
        self.decoder.reset()

    def read(self, ids: list[int]) -> int:
        return int(self.decoder.prefill(self.embed(np.array([ids])))[0, -1].argmax())

    def step(self, token: int) -> int:
        return int(self.decoder.step(self.embed(np.array([[token]])))[0].argmax())

    def see(self, pixels: np.ndarray) -> np.ndarray:
        return self.graphs.session("vision_encoder").run({"pixel_values": pixels})["image_features"]


class Genai:
    """onnxruntime-genai; it has no tower for this model."""

    def __init__(self, work: Path, precision: str, threads: str = "") -> None:
        import onnxruntime_genai

        self.og = onnxruntime_genai
        config = self.og.Config(str(work / f"genai-{precision}"))
        if not threads:
            # Its own choice is one thread on two cores.
            options = {"session_options": {"intra_op_num_threads": THREADS}}
            config.overlay(json.dumps({"model": {"decoder": options}}))
        self.model = self.og.Model(config)

    def reset(self) -> None:
        self.generator = None
        params = self.og.GeneratorParams(self.model)
        params.set_search_options(do_sample=False, max_length=CONTEXT)
        self.generator = self.og.Generator(self.model, params)

    def read(self, ids: list[int]) -> int:
        self.generator.append_tokens(np.array(ids, np.int32))
        return self.step(0)

    def step(self, token: int) -> int:
        """It appends what it chose itself, and chooses from what it computed before."""
        self.generator.generate_next_token()
        return int(self.generator.get_next_tokens()[0])


class OptimumRaw:
    """The models that optimum-intel writes, driven by infer requests without its pipeline."""

    def __init__(self, work: Path) -> None:
        import openvino

        core, config = openvino.Core(), {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": THREADS}
        names = ("language_model", "text_embeddings_model", "vision_embeddings_model")
        paths = (work / "optimum" / f"openvino_{name}.xml" for name in names)
        made = [core.compile_model(path, "CPU", config).create_infer_request() for path in paths]
        self.language, self.table, self.tower = made
        self.length = 0

    def reset(self) -> None:
        self.language.reset_state()
        self.length = 0

    def read(self, ids: list[int]) -> int:
        embeds = self.table.infer([np.array([ids])], share_outputs=True)[0]
        first, self.length = self.length, self.length + len(ids)
        feeds = {"inputs_embeds": embeds, "attention_mask": np.ones((1, self.length), np.int64)}
        feeds |= {"position_ids": np.arange(first, self.length)[None], "beam_idx": np.zeros(1, np.int32)}
        return int(self.language.infer(feeds, share_outputs=True)["logits"][0, -1].argmax())

    def step(self, token: int) -> int:
        return self.read([token])

    def see(self, pixels: np.ndarray) -> np.ndarray:
        feeds = {"pixel_values": pixels, "patch_attention_mask": np.ones((1, 32, 32), bool)}
        return self.tower.infer({**feeds, "patch_position_ids": np.arange(1024)[None]})[0]


class Transformers:
    """The original in fp32; compiled, one step at a time over a cache of fixed size, as its `generate` does it."""

    def __init__(self, work: Path, how: str) -> None:
        import torch
        from transformers import SmolVLMForConditionalGeneration, StaticCache

        torch.set_num_threads(THREADS)
        torch.set_grad_enabled(False)
        self.torch, self.static, self.compiled = torch, StaticCache, how == "compiled"
        self.model = SmolVLMForConditionalGeneration.from_pretrained(work / "checkpoint", dtype=torch.float32).eval()
        self.text, self.head = self.model.model.text_model, self.model.lm_head
        self.next = torch.compile(self._next) if self.compiled else self._next
        self.tower = torch.compile(self._tower) if self.compiled else self._tower

    def _next(self, ids: Any, positions: Any) -> Any:
        found = self.text(input_ids=ids, position_ids=positions, past_key_values=self.cache, use_cache=True)
        self.cache = found.past_key_values
        return self.head(found.last_hidden_state[:, -1])

    def _tower(self, pixels: Any) -> Any:
        return self.model.model.connector(self.model.model.vision_model(pixels).last_hidden_state)

    def reset(self) -> None:
        self.cache = self.static(self.text.config, max_cache_len=CONTEXT) if self.compiled else None
        self.length = 0

    def read(self, ids: list[int]) -> int:
        torch = self.torch
        run = self.next if len(ids) == 1 else self._next
        positions = torch.arange(self.length, self.length + len(ids))[None]
        self.length += len(ids)
        return int(run(torch.tensor([ids]), positions).argmax())

    def step(self, token: int) -> int:
        return self.read([token])

    def see(self, pixels: np.ndarray) -> np.ndarray:
        return self.tower(self.torch.from_numpy(pixels)).numpy()


class Llama:
    """llama.cpp; the decoder alone."""

    def __init__(self, work: Path, precision: str) -> None:
        import llama_cpp

        self.cpp = llama_cpp
        size = {"n_ctx": CONTEXT, "n_batch": CONTEXT, "n_threads": THREADS, "n_threads_batch": THREADS}
        self.model = llama_cpp.Llama(str(work / f"llama-{precision}.gguf"), verbose=False, **size)

    def reset(self) -> None:
        self.model.reset()
        self.cpp.llama_memory_clear(self.cpp.llama_get_memory(self.model._ctx.ctx), True)

    def read(self, ids: list[int]) -> int:
        self.model.eval(ids)
        logits = self.cpp.llama_get_logits_ith(self.model._ctx.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (self.model.n_vocab(),)).argmax())

    def step(self, token: int) -> int:
        return self.read([token])


def _edgemm(work: Path, runtime: str, precision: str) -> Any:
    """As `edgemm.load` does it."""
    sys.path.insert(0, str(ROOT))
    from edgemm.bundle.opening import open_bundle
    from edgemm.model import Model
    from edgemm.runtimes.base import SessionOptions

    options = SessionOptions(threads=THREADS)
    return Model(open_bundle(work / f"edgemm-{precision}"), runtime=runtime, options=options)


def graphs(work: Path, name: str) -> dict[str, Any]:
    """Milliseconds of a round, by what was timed."""
    family, *how = name.split("-")
    kinds = {"edgemm": Edgemm, "genai": Genai, "optimum": OptimumRaw, "transformers": Transformers, "llama": Llama}
    model: Graphs = kinds[family](work, *([] if family == "optimum" else how))
    rng = np.random.default_rng(3)
    found: dict[str, list[float]] = {}

    def timed(what: str, call: Callable[..., Any], *given: Any) -> Any:
        start = time.perf_counter()
        result = call(*given)
        found.setdefault(what, []).append((time.perf_counter() - start) * 1e3)
        return result

    model.reset()
    model.step(model.read(rng.integers(0, 49_000, 80).tolist()))
    for new, times in PREFILLS.items():
        for _ in range(times):
            model.reset()
            token = timed(f"prefill {new}", model.read, rng.integers(0, 49_000, new).tolist())
        for _ in range(STEPS if new in PASTS else 0):
            token = timed(f"decode at {new}", model.step, token)
    if hasattr(model, "see"):
        pixels = rng.uniform(-1, 1, (1, 3, 512, 512)).astype(np.float32)
        model.see(pixels)
        for _ in range(2):
            timed("vision", model.see, pixels)
    return {what: list(ms[UNCOUNTED:] if what.startswith("decode") else ms) for what, ms in found.items()}


Say = Callable[[], tuple[int, list[float]]]
"""An answer: how many tokens the prompt had, and when each new one was there, seconds after the question."""


def _edgemm_says(work: Path, runtime: str, precision: str) -> Say:
    model, picture = _edgemm(work, runtime, precision), np.load(work / "picture.npy")

    def say() -> tuple[int, list[float]]:
        said = model.answer(picture, QUESTION, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
        count, first, all_ms = len(said.tokens), said.ttft_ms, said.model_ms
        return 0, [(first + (all_ms - first) * i / (count - 1)) / 1e3 for i in range(count)]

    return say


class Clock:
    """A streamer that notes when tokens come. The first it is given is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _generate_says(work: Path, family: str) -> Say:
    """Through the processor and `generate` of transformers, with optimum-intel's model or its own."""
    import torch
    from PIL import Image
    from transformers import AutoProcessor

    torch.set_num_threads(THREADS)
    if family == "optimum":
        from optimum.intel import OVModelForVisualCausalLM

        settings = {"INFERENCE_NUM_THREADS": str(THREADS)}
        model = OVModelForVisualCausalLM.from_pretrained(work / "optimum", ov_config=settings)
    else:
        from transformers import SmolVLMForConditionalGeneration

        model = SmolVLMForConditionalGeneration.from_pretrained(work / "checkpoint", dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(work / "checkpoint")
    picture = Image.fromarray(np.load(work / "picture.npy"))
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]

    def say() -> tuple[int, list[float]]:
        clock, start = Clock(), time.perf_counter()
        prompt = processor.apply_chat_template(asked, add_generation_prompt=True)
        inputs = processor(text=prompt, images=[picture], return_tensors="pt")
        options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
        with torch.inference_mode():
            out = model.generate(**inputs, **options, streamer=clock)
        length = inputs["input_ids"].shape[1]
        processor.decode(out[0, length:], skip_special_tokens=True)
        return length, [t - start for t in clock.times[1:]]

    return say


def answer(work: Path, name: str) -> dict[str, Any]:
    """Milliseconds to the first token and per token behind it, and the greatest memory of this process."""
    family, *how = name.split("-")
    say = _edgemm_says(work, *how) if family == "edgemm" else _generate_says(work, family)
    say()
    firsts, each = [], []
    for _ in range(ANSWERS):
        prompt, times = say()
        firsts.append(times[0] * 1e3)
        each.append((times[-1] - times[0]) / (len(times) - 1) * 1e3)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"first token": firsts, "per token": each, "MB": [peak_mb], "prompt": [prompt], "new": [len(times)]}


def bandwidth(_: Path, __: str) -> dict[str, Any]:
    """GB/s that two threads read of memory that was written."""
    from concurrent.futures import ThreadPoolExecutor

    halves = [np.full(64 << 20, 1.0, np.float32) for _ in range(THREADS)]
    rates = []
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(10):
            start = time.perf_counter()
            list(pool.map(lambda half: float(half @ half), halves))
            rates.append(sum(half.nbytes for half in halves) / (time.perf_counter() - start) / 1e9)
    return {"GB/s": [max(rates)]}


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    place, kind, contender = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    kinds = {"graphs": graphs, "answer": answer, "bandwidth": bandwidth}
    print(json.dumps(kinds[kind](place, contender)))
