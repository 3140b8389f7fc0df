"""The offer of a page that wants to see, or to send, by WebRTC: what of its text is let through to aiortc."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgemm.errors import InputError

# What the connection needs. Candidates are not in it: a page could name any address, and the page's own checks show
# where it is (peer-reflexive candidates, RFC 8445, 7.3.1.3).
_KEPT = frozenset({
    "mid", "ice-ufrag", "ice-pwd", "ice-options", "fingerprint", "setup", "rtcp-mux", "rtpmap", "fmtp",
    "rtcp-fb", "extmap", "sctp-port", "max-message-size",
})  # fmt: skip
_LINE = re.compile(r"([a-z])=([ -~]*)")
_MEDIA = re.compile(r"(audio|video) \d{1,5} UDP/TLS/RTP/SAVPF( \d{1,3}){1,100}")
_DATA = re.compile(r"application \d{1,5} UDP/DTLS/SCTP webrtc-datachannel")
# Of the first section: all use its transport.
_TRANSPORT = {
    "ice-ufrag": re.compile(r"[A-Za-z0-9+/]{4,256}"),
    "ice-pwd": re.compile(r"[A-Za-z0-9+/]{22,256}"),
    "fingerprint": re.compile(r"sha-(256|384|512) [0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){31,63}"),
    "setup": re.compile(r"actpass|active|passive"),
}
_MID = re.compile(r"[A-Za-z0-9_-]{1,16}")


def cleaned(text: str, kinds: Sequence[str], direction: str) -> str:
    """An offer of one track of each of `kinds` (`video`, `audio`), which its page would like to have `recvonly` or
    `sendonly`, and of one data channel on the same transport, in this order; everything else is taken out of it.
    Raises InputError."""
    sections: list[list[tuple[str, str]]] = [[]]
    for line in text.splitlines():
        parts = _LINE.fullmatch(line.rstrip())
        if parts is None:
            raise _refused("a line is no SDP")
        if parts[1] == "m":
            sections.append([])
        sections[-1].append((parts[1], parts[2]))
    session, *media = sections
    if len(media) != len(kinds) + 1:
        raise _refused(f"offer {' and '.join(kinds)}, and one data channel")
    for section, kind in zip(media, kinds, strict=False):
        found = _MEDIA.fullmatch(section[0][1])
        if found is None or found[1] != kind or ("a", direction) not in section or ("a", "rtcp-mux") not in section:
            raise _refused(f"offer {kind} {direction}")
    if not _DATA.fullmatch(media[-1][0][1]):
        raise _refused("offer the data channel last")
    mids = [_value(section, "mid", _MID) for section in media]
    group = f"group:BUNDLE {' '.join(mids)}"
    if len(set(mids)) < len(mids) or ("a", group) not in session:
        raise _refused("bundle them")
    for name, pattern in _TRANSPORT.items():
        _value(media[0], name, pattern)
    _value(media[-1], "sctp-port", re.compile(r"\d{1,4}"))
    lines = ["v=0", "o=- 0 0 IN IP4 0.0.0.0", "s=-", "t=0 0", f"a={group}"]
    for section in media[:-1]:
        lines += [*_kept(section), f"a={direction}"]
    return "\r\n".join([*lines, *_kept(media[-1])]) + "\r\n"


def _kept(section: list[tuple[str, str]]) -> list[str]:
    lines = [f"a={value}" for kind, value in section[1:] if kind == "a" and value.partition(":")[0] in _KEPT]
    return [f"m={section[0][1]}", *lines]


def _value(section: list[tuple[str, str]], name: str, pattern: re.Pattern[str]) -> str:
    found = [value.partition(":")[2] for kind, value in section if kind == "a" and value.startswith(f"{name}:")]
    if not found or not all(pattern.fullmatch(value) for value in found):
        raise _refused(f"a={name} is missing or wrong")
    return found[0]


def _refused(why: str) -> InputError:
    return InputError("the offer is no SDP of a page", hint=why)
