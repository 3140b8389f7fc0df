"""A page's camera and microphone by WebRTC (`browser://`): what comes, what is bounded, how its end is noticed."""

from __future__ import annotations

import itertools
import queue
import random
import threading
import time
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest

from edgemm.errors import RuntimeUnavailable
from edgemm.live.frames import Frame
from edgemm.live.sinks.base import SinkLimits
from edgemm.live.sources.browser import PICTURE_BYTES, PICTURE_PX
from edgemm.live.web import assembly, rtc
from edgemm.live.web.assembly import HELD, Assembly, Waiting
from edgemm.live.web.incoming import Stamps
from edgemm.live.web.video import number_of, numbered
from tests.live.live_fakes import speech_like, until, within
from tests.live.test_web_capture import exceptions, jpeg, opened, states
from tests.live.web_clients import browser_runs
from tests.live.web_rtc import held, named, post, sender

BOTH = {"cameras": ("browser://",), "mic": "browser://"}


def picture(n, *, bright=True):
    """A picture that says its number, red."""
    image = np.full((224, 320, 3), 40, np.uint8)
    image[..., 0] = 200 if bright else 60
    return numbered(image, n)


@pytest.fixture
def run():
    with browser_runs(SinkLimits(events=1000, frames=10_000, blocks=10_000)) as start:
        yield start


def senders(sink):
    return sink._server.peers.senders


def decoders():
    return [thread.name for thread in threading.enumerate() if thread.name.endswith("-decoder")]


# --- what comes -----------------------------------------------------------------------------------


def test_tracks_become_frames_and_a_transcript(run):
    sink, keep, pipeline = run(**BOTH, size_px=(320, 240), fps=12.0)
    with sender(sink, picture=picture, sound=speech_like(3.0, [(0.8, 1.8)])) as page:
        status, document = page.send(sink)
        assert status == 200
        assert {name: document[name] for name in ("width_px", "height_px", "fps")} == {
            "width_px": 320, "height_px": 240, "fps": 12.0,
        }  # fmt: skip
        until(lambda: [e for e in keep.of("transcript") if e.final])
        until(lambda: keep.of("labels"))
        until(lambda: pipeline.inputs.counts()["camera"].captured >= 20)
        assert states(keep, "camera")[:2] == states(keep, "mic")[:2] == ["opening", "live"]
    assert keep.of("labels")[0].labels[0].label == "red"
    said = next(e for e in keep.of("transcript") if e.final)
    assert 0.6 < float(said.text.split()[0]) < 1.6
    frames = [item for item in keep.items if isinstance(item, Frame)]
    numbers = [number_of(frame.image) for frame in frames]
    assert None not in numbers
    assert numbers == sorted(set(numbers))
    assert frames[0].image.shape == (240, 320, 3)


def test_sound_is_whole_and_its_times_are_those_of_the_pictures(run):
    """A tone that sounds for 3 s, and pictures that are bright while it does."""
    sink, keep, _ = run(**BOTH)
    tone = speech_like(5.0, [(1.0, 4.0)])
    with sender(sink, picture=lambda n: picture(n, bright=15 <= n < 60), sound=tone) as page:
        assert page.send(sink)[0] == 200
        until(lambda: keep.blocks() and keep.blocks()[-1].t_start_s - keep.blocks()[0].t_start_s > 4.6, 30)
    blocks, frames = keep.blocks(), [item for item in keep.items if isinstance(item, Frame)]
    assert not keep.of("audio_gap")
    heard = np.concatenate([block.samples for block in blocks])
    loud = np.flatnonzero(np.abs(heard) > 0.1)
    assert len(heard[loud[0] : loud[-1]]) == pytest.approx(3 * 16_000, abs=100)  # not a packet is missing
    spectrum = np.abs(np.fft.rfft(heard[loud[0] :][:48_000])) ** 2
    assert spectrum[655:666].sum() > 0.99 * spectrum.sum()  # 220 Hz, in one piece
    assert np.abs(heard).max() == pytest.approx(0.3 / np.sqrt(2), abs=0.05)  # FFmpeg's one channel made two
    end_s = blocks[loud[-1] // 512].t_start_s + loud[-1] % 512 / 16_000
    dark_s = next(frame.t_capture_s for frame in frames if (number_of(frame.image) or 0) >= 60)
    # A picture is here once it is encoded and decoded; sound's times don't depend on that.
    assert -0.04 < dark_s - end_s < 0.15


@pytest.mark.parametrize("ppm", [-400, 0, 400])
def test_sounds_times_follow_a_clock_that_goes_wrong_on_a_line_that_is_never_even(ppm):
    chance, stamps, off_ms = random.Random(0), Stamps(), []
    for n in range(100_000):
        recorded_s = n * 0.02 * (1 + ppm * 1e-6)
        stamps.came(n * 960, recorded_s + 0.02 + 0.005 + chance.expovariate(1 / 0.03))
        start_s = stamps.sound(np.zeros(960, np.float32), n * 960).t_monotonic_s
        off_ms.append(1e3 * (start_s - recorded_s))
    assert 4 < min(off_ms[500:]) <= max(off_ms[500:]) < 12  # 5 ms at the least is what the line takes


@pytest.mark.parametrize(("lossy", "shuffled"), [(0.0, 0), (0.0, 2), (0.02, 2), (0.2, 3)])
@pytest.mark.parametrize(("kind", "most"), [("video", 5), ("audio", 1)])
def test_frames_are_put_together_whatever_the_line_does(kind, most, lossy, shuffled, monkeypatch):
    """Packets are lost, overtaken and sent twice: what comes out is what was sent, in order and once."""
    chance, sent, line = random.Random(0), [], []
    for n in range(400):
        parts = [bytes([1, n % 256, part]) for part in range(chance.randint(1, most))]
        sent.append(b"".join(parts))
        for data in parts:
            descriptor = b"\0" if data[2] else b"\x10"
            line.append(SimpleNamespace(
                sequence_number=(65_000 + len(line)) % 2**16, timestamp=(2**32 - 90_000 + 3000 * n) % 2**32,
                payload=descriptor + data, _data=data, marker=data is parts[-1], frame=n,
            ))  # fmt: skip
    keys = {id(packet): n + chance.uniform(0, shuffled) for n, packet in enumerate(line)}
    came = sorted((packet for packet in line if chance.random() >= lossy), key=lambda packet: keys[id(packet)])
    monkeypatch.setitem(assembly.WAITING, kind, 100)
    waiting, out = Waiting(kind, threading.Event()), []
    waiting._broken, waiting.lost = False, lambda: None  # as if every picture were a whole one
    one, now_s = Assembly(kind, "codec", waiting), itertools.count(0.0, 0.005)
    monkeypatch.setattr(assembly, "time", SimpleNamespace(monotonic=lambda: next(now_s)))
    for packet in came:
        for _ in range(chance.choice((1, 1, 2))):
            assert one.add(packet) == (False, None)
        assert len(one._held) <= HELD[kind]
        while not waiting.empty():
            out.append(waiting.get()[1])
    numbers = [came[0].frame + frame.timestamp // 3000 for frame in out]
    assert numbers == sorted(set(numbers))
    assert [frame.data for frame in out] == [sent[n] for n in numbers]
    lost = set(map(id, line)) - set(map(id, came))
    whole = len(sent) - len({packet.frame for packet in line if id(packet) in lost})
    # The last ones may still wait for what is lost, and the first may have been overtaken.
    assert whole - 25 <= len(out) <= whole if lossy else len(out) >= len(sent) - 2


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_packets_at_random_neither_fail_nor_pile_up(kind):
    chance, waiting = random.Random(0), Waiting(kind, threading.Event())
    one = Assembly(kind, "codec", waiting)
    for n in range(20_000):
        data = chance.randbytes(chance.choice((0, 1, 30, 1200)))
        one.add(SimpleNamespace(
            sequence_number=chance.choice((n % 65_536, chance.randrange(65_536))), payload=data, _data=data[1:],
            timestamp=chance.choice((n * 3000 % 2**32, chance.randrange(2**32))), marker=chance.randrange(2),
        ))  # fmt: skip
        assert len(one._held) <= HELD[kind]
        assert waiting.qsize() <= assembly.WAITING[kind]
    video = Assembly("video", "codec", Waiting("video", threading.Event()))
    for n in range(10_000):  # one picture without an end
        data = b"\x10" + bytes(1200)
        video.add(SimpleNamespace(sequence_number=n, payload=data[n > 0 :], _data=bytes(1200), timestamp=0, marker=0))
        assert sum(map(len, video._parts[:1])) * len(video._parts) <= PICTURE_BYTES


def test_a_lossy_line_costs_pictures_and_moments_of_sound_and_no_more(run):
    sink, keep, pipeline = run(**BOTH)
    chance, lost = random.Random(0), []
    with sender(sink, picture=picture, sound=speech_like(60.0, [(0.0, 60.0)])) as page:
        assert page.send(sink)[0] == 200
        until(lambda: "live" in states(keep, "camera"))
        transport = page.link.getSenders()[0].transport
        send = transport._send_rtp

        async def send_most(data):
            if chance.random() < 0.05:
                lost.append(data)
            else:
                await send(data)

        transport._send_rtp = send_most
        before = pipeline.inputs.counts()["camera"].captured
        until(lambda: len(lost) >= 20, 30)
        transport._send_rtp = send
        after = pipeline.inputs.counts()["camera"].captured
        until(lambda: pipeline.inputs.counts()["camera"].captured > after + 5)
        assert states(keep, "camera")[-1] == states(keep, "mic")[-1] == "live"
    numbers = [number_of(item.image) for item in keep.items if isinstance(item, Frame)]
    assert after - before > 15
    assert None not in numbers[3:]  # what is decoded is whole
    assert numbers == sorted(set(numbers))
    blocks = keep.blocks()
    assert sum(block.gap_s for block in blocks) < 0.5
    span_s = blocks[-1].t_start_s - blocks[0].t_start_s
    assert span_s == pytest.approx(len(blocks) * 0.032, abs=0.6)
    heard = np.concatenate([block.samples for block in blocks])
    quiet = np.abs(heard[: len(heard) // 160 * 160]).reshape(-1, 160).max(axis=1) < 0.02
    assert 0 < quiet.mean() < 0.2


def test_a_lost_packet_is_silence_and_more_is_a_gap():
    stamps, piece = Stamps(), np.ones(960, np.float32)

    def push(pts, now_s):
        stamps.came(pts, now_s)
        return stamps.sound(piece, pts)

    first = push(0, 100.02)
    assert (len(first.samples), first.lost, first.t_monotonic_s) == (960, False, pytest.approx(100.0))
    late = push(960, 100.34)
    assert late.t_monotonic_s == pytest.approx(100.02, abs=1e-3)
    one_lost = push(2880, 100.36)
    assert (len(one_lost.samples), one_lost.lost) == (1920, False)
    assert one_lost.samples[:960].max() == 0
    assert one_lost.t_monotonic_s == pytest.approx(100.04, abs=1e-3)
    many_lost = push(2880 + 960 + 48_000, 101.10)
    assert (len(many_lost.samples), many_lost.lost) == (960, True)
    assert many_lost.t_monotonic_s == pytest.approx(101.08, abs=1e-3)
    for pts in (0, 10**9):  # another stream's clock
        anew = push(pts, 200.0)
        assert (len(anew.samples), anew.lost, anew.t_monotonic_s) == (960, True, pytest.approx(199.98))
    # However late it is decoded, and the others after it have come.
    for n in range(1, 5):
        stamps.came(10**9 + n * 960, 200.0 + n * 0.02)
    assert stamps.sound(piece, 10**9 + 960).t_monotonic_s == pytest.approx(200.0, abs=1e-3)


def test_another_page_takes_over_whichever_way_it_sends(run):
    sink, keep, _ = run()
    with sender(sink, picture=picture) as first, sender(sink, picture=picture) as second:
        first.send(sink)
        until(lambda: "live" in states(keep, "camera"))
        second.send(sink)
        within(2, lambda: first.over)
        within(2, lambda: senders(sink) == 1)
        assert not second.over
        with opened(sink, "/camera") as third:
            third.recv(5)
            within(2, lambda: second.over)
            within(2, lambda: senders(sink) == 0)
            third.send(jpeg())
            assert third.recv(5)
            first.leave()
            first.send(sink)
            with pytest.raises(exceptions.ConnectionClosed):
                list(third)
            assert third.close_code == 4001
        assert "lost" not in states(keep, "camera")


# --- whom it refuses, and what is bounded ---------------------------------------------------------


def test_offers_of_what_is_not_wanted_are_refused_and_leave_nothing(run):
    sink, _, _ = run()
    with sender(sink, picture=picture, sound=np.zeros(0)) as page:
        before = held(sink)
        status, document = page.send(sink)
        assert status == 503
        assert document["error"]["message"] == "this run takes none: start it with --mic browser://"
        page.leave()
        for names in ([], "camera", ["camera", "x"], [["camera"]], None, 7, ["camera"]):  # the last: two tracks
            offer = {"viewer": named(page.page), "send": names, "sdp": page.offer()}
            assert post(sink, offer)[0] == 400
            page.leave()
        assert senders(sink) == 0
        until(lambda: held(sink) <= before, 3)


def test_senders_are_few_and_have_the_token(run, monkeypatch):
    monkeypatch.setenv("EDGEMM_SINK_TOKEN", "sesame")
    sink, _, _ = run()
    offer = {"viewer": "x", "send": ["camera"], "sdp": "v=0"}
    assert post(sink, offer)[0] == 401
    assert post(sink, offer, Authorization="Bearer sesame", Origin="http://evil.example")[0] == 403
    assert post(sink, offer, Authorization="Bearer sesame")[0] == 400


def test_a_third_sender_is_refused(run):
    sink, _, _ = run()
    with (
        sender(sink, picture=picture) as one,
        sender(sink, picture=picture) as two,
        sender(sink, picture=picture) as three,
    ):
        for page in (one, two):
            assert post(sink, {"viewer": named(page.page), "send": ["camera"], "sdp": page.offer()})[0] == 200
        assert three.send(sink)[0] == 503


def test_what_waits_for_a_decoder_is_bounded_and_too_large_pictures_are_left_out():
    def whole(width, height):
        return b"\x10\x02\x00\x9d\x01\x2a" + width.to_bytes(2, "little") + height.to_bytes(2, "little") + bytes(8)

    def put(data):
        waiting.put((None, SimpleNamespace(data=data)))
        return waiting.qsize()

    wanted = threading.Event()
    waiting, between = Waiting("video", wanted), b"\x11" * 20
    assert put(between) == 0  # nothing to start from
    assert wanted.is_set()
    wanted.clear()
    assert [put(whole(640, 480)), *(put(between) for _ in range(7))] == list(range(1, 9))
    assert not wanted.is_set()
    assert put(between) == 8
    assert wanted.is_set()
    waiting.get()
    assert put(between) == 7  # it would follow on one that was left out
    assert put(whole(640, 480)) == 1
    for data in (whole(PICTURE_PX + 1, 16), whole(0, 16), whole(16, 16)[:9], b"\x10" * 20, b"\0"):
        assert put(data) == put(between) == 0
    put(whole(16, 16))
    waiting.put(None)
    assert waiting.get() is None
    with pytest.raises(queue.Empty):
        waiting.get_nowait()
    sound = Waiting("audio", wanted)
    for _ in range(100):
        sound.put((None, SimpleNamespace(data=b"\0")))
    assert sound.qsize() == assembly.WAITING["audio"]


def test_a_picture_of_a_real_encoder_says_its_size():
    encoder = av.CodecContext.create("libvpx", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 322, 242, "yuv420p", Fraction(1, 15)
    data = []
    for n in range(3):
        frame = av.VideoFrame(322, 242, "yuv420p")
        frame.pts = n
        data += [bytes(packet) for packet in encoder.encode(frame)]
    data += [bytes(packet) for packet in encoder.encode()]
    assert [assembly.vp8_size_px(one) for one in data] == [(322, 242), None, None]


def test_a_busy_machine_is_no_thin_line():
    found = iter([None, (40_000, [7]), (2_000_000, [7])])
    estimate = assembly.Estimate(SimpleNamespace(add=lambda **packet: next(found)))
    told = [estimate.add(ssrc=7) for _ in range(3)]
    assert told == [None, (assembly.LEAST_BITS_PER_S, [7]), (2_000_000, [7])]


def test_an_aiortc_with_other_insides_is_not_used():
    with pytest.raises(RuntimeUnavailable, match="cannot be used to receive"):
        assembly.take_over(SimpleNamespace(), "video", None)


# --- how each end notices -------------------------------------------------------------------------


def leaves(page):
    page.leave()


def loses_its_page(page):
    page.page.close()


def stands_still(page):
    """As a browser does whose process is killed or stopped: nothing is sent, and nothing closed."""
    page.loop.call_soon_threadsafe(time.sleep, 4.0)


def test_a_page_that_answers_no_ping_but_sends_is_there(run):
    sink, keep, _ = run(**BOTH)
    with sender(sink, picture=picture, sound=np.zeros(0), answers=False) as page:
        assert page.send(sink)[0] == 200
        until(lambda: page.pings > rtc.UNANSWERED + 3)
        assert senders(sink) == 1
        assert "lost" not in states(keep, "camera")


@pytest.mark.parametrize("gone", [leaves, loses_its_page, stands_still])
def test_a_page_that_is_gone_is_noticed_within_two_seconds_and_may_come_back(run, gone):
    sink, keep, pipeline = run(**BOTH)
    before = held(sink)
    for again in (False, True, True):
        with sender(sink, picture=picture, sound=np.zeros(0)) as page:
            assert page.send(sink)[0] == 200
            until(lambda: states(keep, "camera")[-1] == states(keep, "mic")[-1] in ("live", "reconnected"))
            assert ("reconnected" in states(keep, "camera")) == again
            assert len(decoders()) == 2
            gone(page)
            within(2, lambda: senders(sink) == 0 and {states(keep, name)[-1] for name in ("camera", "mic")} == {"lost"})
        until(lambda: held(sink) <= before, 3)
        until(lambda: not decoders(), 2)
    counts = pipeline.inputs.counts()["camera"]
    assert counts.captured == counts.processed + sum(counts.dropped.values()) + counts.in_flight


def test_a_run_that_ends_leaves_nothing(run):
    sink, keep, pipeline = run(**BOTH)
    with sender(sink, picture=picture, sound=np.zeros(0)) as page:
        page.send(sink)
        until(lambda: "live" in states(keep, "camera"))
        began = time.monotonic()
        pipeline.stop()
        assert time.monotonic() - began < 1.5
        until(lambda: page.link.connectionState == "closed" or not decoders(), 3)
    until(lambda: not decoders(), 3)
