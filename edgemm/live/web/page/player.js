// The pictures: those of /stream.mjpg at once, and by WebRTC from when the first one came so, as long as it works.
// Both tell which frame a picture is: what was found in a frame is drawn over that very frame.
import { EVERY_MS } from "./history.js";
import { Rtc } from "./rtc.js";

export class Player {
  constructor(canvas, { onPart, onFrame, onWay }) {
    this.canvas = canvas;
    this.onPart = onPart;
    this.onFrame = onFrame;
    this.onWay = onWay;
    this.held = false;
    this.abort = this.rtc = this.source = this.viewer = null;
    this.kept = 0;
    this.spare = document.createElement("canvas");
  }

  show(source) {
    this.source = source;
    this.fetch();
    this.upgrade();
  }

  // The server's name for this page, with which it may ask for WebRTC.
  name(viewer) {
    this.viewer = viewer;
    if (this.source !== null) this.upgrade();
  }

  // --- WebRTC ---

  upgrade() {
    const before = this.rtc;
    this.rtc = null;
    before?.close();
    if (!this.viewer || !window.RTCPeerConnection || !HTMLVideoElement.prototype.requestVideoFrameCallback) return;
    const rtc = (this.rtc = new Rtc(
      (video, width, height, frame) => this.rtc === rtc && this.live(video, width, height, frame),
      () => {
        if (this.rtc !== rtc) return;
        this.rtc = null;
        if (!this.abort) this.fetch();
      },
    ));
    rtc.open(this.viewer, this.source);
  }

  live(video, width, height, frame) {
    if (this.abort) {
      this.abort.abort();
      this.abort = null;
      this.onWay("WebRTC");
    }
    if (!this.held) {
      paint(this.canvas, video, width, height);
      this.onFrame(frame);
    }
    const now = performance.now();
    if (now - this.kept < EVERY_MS) return;
    this.kept = now;
    paint(this.spare, video, width, height);
    this.spare.toBlob((jpeg) => jpeg && this.onPart({ frame, jpeg }), "image/jpeg", 0.75);
  }

  // --- MJPEG: read here and not by an <img>, since each part says which frame it is ---

  fetch() {
    this.abort?.abort();
    this.onWay("MJPEG");
    const abort = (this.abort = new AbortController());
    const again = () => { if (!abort.signal.aborted) setTimeout(() => this.abort === abort && this.fetch(), 1000); };
    this.follow(`/stream.mjpg?source=${encodeURIComponent(this.source)}`, abort.signal).then(again, again);
  }

  async follow(url, signal) {
    const answer = await fetch(url, { signal });
    if (!answer.ok) throw new Error(answer.statusText);
    const reader = answer.body.getReader();
    let rest = new Uint8Array(0);
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest = joined(rest, value);
      let newest = null;
      for (let part = cut(rest); part; part = cut(rest)) {
        newest = part;
        rest = part.rest;
      }
      if (!newest || signal.aborted) continue;
      this.onPart(newest);
      if (!this.held) await this.draw(newest, signal);
    }
  }

  async draw(part, signal) {
    const picture = await createImageBitmap(new Blob([part.jpeg], { type: "image/jpeg" }));
    if (!signal?.aborted) {
      paint(this.canvas, picture, picture.width, picture.height);
      this.onFrame(part.frame);
    }
    picture.close();
  }
}

function paint(canvas, picture, width, height) {
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  canvas.getContext("2d").drawImage(picture, 0, 0, width, height, 0, 0, width, height);
}

function joined(a, b) {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}

// The first part that is whole, and what follows it.
function cut(data) {
  const head = String.fromCharCode(...data.subarray(0, 400));
  const end = head.indexOf("\r\n\r\n");
  if (end < 0) return null;
  const field = (name) => Number(new RegExp(`${name}: (\\d+)`, "i").exec(head.slice(0, end))?.[1] ?? 0);
  const start = end + 4, stop = start + field("Content-Length");
  if (data.length < stop) return null;
  return { frame: field("X-Frame"), jpeg: data.slice(start, stop), rest: data.slice(stop) };
}
