"""Pictures by WebRTC: what comes, whom it refuses, and how each end notices that the other is gone."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import sys
import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest

from edgemm.errors import InputError
from edgemm.live.options import StreamOptions
from edgemm.live.pipeline import Pipeline
from edgemm.live.sinks.base import SinkLimits
from edgemm.live.sources.testing import read_clock
from edgemm.live.web import rtc, video
from tests.live.live_fakes import FakeModel, KeepSink, open_files, until, within
from tests.live.web_clients import Page, WebSink, mjpeg, running
from tests.live.web_rtc import Viewer, aiortc, held, named, post, viewer

PATTERN = "test://?size=320x240&fps=15"


def peers(sink):
    return sink._server.peers.viewers


# --- what comes -----------------------------------------------------------------------------------


def test_pictures_are_the_frames_that_they_say_at_the_frames_own_time():
    sink, keep = WebSink("127.0.0.1:0"), KeepSink(SinkLimits(events=100, frames=10_000))
    pipeline = Pipeline(FakeModel(), StreamOptions(cameras=(PATTERN,)), [sink, keep])
    pipeline.start()
    try:
        with viewer(sink) as one:
            until(sink.pictures.sources)
            assert one.watch(sink)[0] == 200
            until(lambda: len(one.pictures) >= 25)
            seen = list(one.pictures)
    finally:
        pipeline.stop()
    frames = {item.id: item for item in keep.items if hasattr(item, "image")}
    numbers = [video.number_of(picture) for picture, _, _ in seen]
    assert None not in numbers
    assert numbers == sorted(set(numbers))
    first = frames[numbers[0]]
    for number, (picture, t_s, _) in zip(numbers, seen, strict=True):
        frame, image = frames[number], picture[: -video.STRIP_PX]
        assert image.shape == frame.image.shape == (240, 320, 3)
        assert read_clock(image) == read_clock(frame.image)
        assert np.abs(image.astype(int) - frame.image).mean() < 12
        assert t_s - seen[0][1] == pytest.approx(frame.t_capture_s - first.t_capture_s, abs=1e-3)
    steps = np.diff([came_s for _, _, came_s in seen[5:]])
    assert 1 / np.mean(steps) > 2  # encoders yield to whatever else runs


def test_the_last_picture_is_sent_again_where_none_follows():
    sink = WebSink("127.0.0.1:0")
    with running(sink, camera="test://?size=160x120&fps=0.2"), viewer(sink) as one:
        until(sink.pictures.sources)
        one.watch(sink)
        until(lambda: len(one.pictures) >= 3)
        assert {video.number_of(picture) for picture, _, _ in one.pictures[:3]} <= {0, 1}
        times = [t_s for _, t_s, _ in one.pictures]
        assert times == sorted(set(times))


@pytest.mark.parametrize("size_px", [(640, 480), (1920, 1080), (33, 35), (161, 121), (960, 541)])
def test_a_number_is_read_back_from_under_any_picture(size_px):
    width, height = size_px
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for number in (0, 1, 0xFFFFFFFF, 123_456_789):
        picture = video.numbered(image, number)
        assert all(side % 2 == 0 for side in picture.shape[:2])
        assert picture.shape[1] <= video.WIDTH_PX
        assert (picture.shape[0] - video.STRIP_PX) / picture.shape[1] == pytest.approx(height / width, abs=0.03)
        assert video.number_of(picture) == number
    assert video.number_of(np.zeros_like(picture)) is None
    assert video.number_of(np.full_like(picture, 255)) is None


# --- whom it refuses ------------------------------------------------------------------------------


def test_a_third_viewer_is_told_so_sees_mjpeg_and_may_come_when_one_leaves():
    sink = WebSink("127.0.0.1:0")
    with running(sink, camera=PATTERN), ExitStack() as stack:
        until(sink.pictures.sources)
        first, second, third = (stack.enter_context(viewer(sink)) for _ in range(3))
        assert first.watch(sink)[0] == second.watch(sink)[0] == 200
        until(lambda: first.pictures and second.pictures)
        status, document = third.watch(sink)
        assert status == 503
        assert document["error"] == {
            "code": "sink",
            "message": "there are 2 viewers by WebRTC already",
            "hint": "pictures are at /stream.mjpg for everybody",
        }
        assert len(mjpeg(sink, 1.0)) >= 4
        assert peers(sink) == 2
        first.leave()
        until(lambda: peers(sink) == 1, 2)
        third.leave()
        assert third.watch(sink)[0] == 200
        until(lambda: third.pictures)


def test_offers_without_the_token_or_of_another_site_are_refused(monkeypatch):
    monkeypatch.setenv("EDGEMM_SINK_TOKEN", "sesame")
    sink = WebSink("127.0.0.1:0")
    with running(sink, camera=PATTERN):
        page = Page(sink, "?token=sesame")
        one = Viewer(page)
        offer = {"viewer": named(page), "source": "camera", "sdp": one.offer()}
        assert post(sink, offer)[0] == post(sink, offer, query="?token=wrong")[0] == 401
        for origin in ("http://evil.example", "null"):
            assert post(sink, offer, query="?token=sesame", Origin=origin)[0] == 403
        assert post(sink, offer, Authorization="Bearer sesame", Host="evil.example")[0] == 403
        assert peers(sink) == 0
        assert post(sink, offer, Authorization="Bearer sesame")[0] == 200
        one.close()
        page.close()


def test_offers_that_are_none_are_refused_and_leave_nothing(caplog, monkeypatch):
    monkeypatch.setattr(rtc, "BURST", 1000)
    sink = WebSink("127.0.0.1:0")
    with running(sink, camera=PATTERN), viewer(sink) as one:
        good = one.offer()
        one.leave()
        lines = good.split("\r\n")
        before = held(sink)
        broken = ["", "v=0", "m=video\r\nm=application\r\na=group:BUNDLE 0 1", good * 2, good.replace("BUNDLE", "X")]
        broken += ["\r\n".join([*lines[:n], "\0" * 9]) for n in range(1, len(lines), 5)]
        broken += [good.replace(*pair) for pair in (
            ("sha-256", "md-0"), ("a=ice-", "a=no-"), ("a=rtpmap", "a=x"), ("a=fingerprint", "a=f"),
            ("m=video", "m=audio"), ("UDP/TLS/RTP/SAVPF", "RTP/AVP"), ("a=mid:0", "a=mid:7"),
            ("webrtc-datachannel", "x"), ("sctp-port:5000", "sctp-port:x"),
        )]  # fmt: skip
        name = named(one.page)
        told = [post(sink, {"viewer": name, "source": "camera", "sdp": text}) for text in broken]
        for document in (b"", b"\xff\xfe", b"[1]", {"viewer": "other", "source": "camera", "sdp": good},
                         {"viewer": name, "source": 1, "sdp": good}, {"viewer": name, "source": "camera"}):  # fmt: skip
            told.append(post(sink, document))
        assert {status for status, _ in told} == {400}
        for _, document in told:
            assert document["error"]["code"] == "input"
            assert "Traceback" not in str(document)
        assert post(sink, {"viewer": name, "source": "camera", "sdp": "x" * 20_000})[0] == 413
        assert peers(sink) == 0
        until(lambda: held(sink) <= before, 3)
    assert [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")] == []


def test_offers_broken_at_random_are_answered_or_refused_and_leave_nothing(caplog, monkeypatch):
    monkeypatch.setattr(rtc, "BURST", 1000)
    chance = random.Random(0)

    async def offers():
        link = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        link.addTransceiver("video", direction="recvonly")
        link.createDataChannel("alive")
        await link.setLocalDescription(await link.createOffer())
        lines = link.localDescription.sdp.splitlines()
        await link.close()
        for _ in range(200):
            broken = list(lines)
            for _ in range(chance.randint(0, 3)):
                at = chance.randrange(len(broken))
                line, column = broken[at], chance.randrange(len(broken[at]))
                broken[at : at + 1] = chance.choice((
                    [], [line, line], [line[:column]], [line[:column] + chance.choice("0/: x~") + line[column + 1 :]],
                ))  # fmt: skip
            yield "\r\n".join(broken)

    async def storm():
        ones, done = rtc.Peers(lambda source: None), {"answered": 0, "refused": 0}
        async for offer in offers():
            try:
                assert "m=video" in await ones.answer(offer, "camera", offer, lambda: False)
                done["answered"] += 1
            except InputError:
                done["refused"] += 1
            await ones.end(offer)
            assert ones.viewers == 0
        await asyncio.sleep(0.1)
        gc.collect()
        assert len(asyncio.all_tasks()) == 1
        return done

    before = open_files()
    done = asyncio.run(storm())
    gc.collect()
    assert min(done.values()) > 30, done
    assert open_files() <= before
    assert [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")] == []


def test_offers_that_come_too_fast_are_refused():
    sink = WebSink("127.0.0.1:0")
    with running(sink, camera=PATTERN), viewer(sink) as one:
        name = named(one.page)
        told = [post(sink, {"viewer": name, "source": "camera", "sdp": "v=0"})[0] for _ in range(30)]
        assert told[0] == 400
        assert told.count(429) >= 10


def test_only_this_machines_addresses_are_told_and_no_others_contacted():
    sink = WebSink("127.0.0.1:0")
    with running(sink, camera=PATTERN), viewer(sink) as one, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trap:
        trap.bind(("127.0.0.1", 0))
        trap.settimeout(1.0)
        line = f"a=candidate:1 1 udp 2130706431 127.0.0.1 {trap.getsockname()[1]} typ host\r\n"
        offer = one.offer().replace("a=end-of-candidates", line + "a=end-of-candidates")
        assert line in offer
        status, document = post(sink, {"viewer": named(one.page), "source": "camera", "sdp": offer})
        assert status == 200
        told = [text.split() for text in document["sdp"].splitlines() if text.startswith("a=candidate")]
        assert told
        assert {text[7] for text in told} == {"host"}
        with pytest.raises(TimeoutError):
            trap.recv(10)


def test_there_is_none_where_frames_do_not_come_in_real_time(talking_clip):
    sink = WebSink("127.0.0.1:0")
    options = StreamOptions(cameras=(str(talking_clip),), as_fast_as_possible=True, mic="none")
    pipeline = Pipeline(FakeModel(work_s=0.05), options, [sink])
    pipeline.start()
    page = Page(sink)
    until(lambda: page.has("page"))
    assert "viewer" not in page.has("page")[0]
    status, document = post(sink, {"viewer": "x", "source": "camera", "sdp": "v=0"})
    assert (status, document["error"]["code"]) == (503, "sink")
    pipeline.stop()


def test_without_aiortc_no_page_is_offered_any(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiortc", None)
    sink = WebSink("127.0.0.1:0")
    with running(sink, camera=PATTERN):
        page = Page(sink)
        until(lambda: page.has("page"))
        assert "viewer" not in page.has("page")[0]
        status, document = post(sink, {"viewer": "x", "source": "camera", "sdp": "v=0"})
        assert status == 503
        assert document["error"]["hint"] == 'run: pip install "edgemm[webrtc]"'
        page.close()


# --- how each end notices -------------------------------------------------------------------------


def leaves(one):
    one.leave()


def loses_its_page(one):
    one.page.close()


def falls_silent(one):
    one.answers = False


@pytest.mark.parametrize("gone", [leaves, loses_its_page, falls_silent])
def test_a_viewer_that_is_gone_is_noticed_within_two_seconds_and_nothing_is_left(gone):
    sink = WebSink("127.0.0.1:0")
    with running(sink, camera=PATTERN):
        until(sink.pictures.sources)
        with viewer(sink) as one:
            one.watch(sink)
            until(lambda: one.pictures)
        until(lambda: peers(sink) == 0)
        before = held(sink)
        for _ in range(3):
            with viewer(sink) as one:
                one.watch(sink)
                until(lambda: len(one.pictures) > 3 and one.pings)
                assert held(sink) > before
                gone(one)
                within(2, lambda: peers(sink) == 0)
            until(lambda: held(sink) <= before, 3)
        threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("edgemm-page-work")]
        assert len(threads) <= rtc.VIEWERS + 1


def test_one_that_never_connects_gives_up_its_place(monkeypatch):
    monkeypatch.setattr(rtc, "CONNECT_S", 1.0)
    sink = WebSink("127.0.0.1:0")
    with running(sink, camera=PATTERN), viewer(sink) as one:
        before = held(sink)
        sdp = one.offer()
        assert post(sink, {"viewer": named(one.page), "source": "camera", "sdp": sdp})[0] == 200
        assert peers(sink) == 1
        one.leave()
        until(lambda: peers(sink) == 0, 3)
        until(lambda: held(sink) <= before, 3)


def test_another_offer_of_a_page_takes_the_place_of_the_first():
    sink = WebSink("127.0.0.1:0")
    with running(sink, camera=PATTERN), viewer(sink) as one:
        until(sink.pictures.sources)
        for _ in range(4):
            assert one.watch(sink)[0] == 200
            one.pictures.clear()
            until(lambda: one.pictures)
            assert peers(sink) == 1
            one.leave()


def test_it_ends_within_a_second_with_viewers_and_they_are_told():
    def threads():
        return {thread.name for thread in threading.enumerate() if thread.name.startswith(("edgemm", "asyncio"))}

    before = threads()
    sink = WebSink("127.0.0.1:0")
    pipeline = Pipeline(FakeModel(), StreamOptions(cameras=(PATTERN,)), [sink])
    pipeline.start()
    with ExitStack() as stack:
        both = [stack.enter_context(viewer(sink)) for _ in range(2)]
        for one in both:
            one.watch(sink)
        until(lambda: all(one.pictures for one in both))
        began = time.monotonic()
        pipeline.stop()
        assert time.monotonic() - began < 1.0
        until(lambda: all(one.ended for one in both), 3)
    until(lambda: threads() <= before, 3)
