// This device's camera and microphone as the run's source: by WebRTC or, where that does not come about or ends, by
// WebSockets. There pictures go one at a time, when the one before was taken; sound goes as 16-bit PCM.
import { Link } from "./link.js";

const QUALITY = 0.8;

export class Capture {
  constructor($) {
    this.$ = $;
    this.camera = this.mic = false;
    this.media = this.viewer = null;
    this.held = false;
    $("consent").onclick = () => (this.media ? this.stop() : this.start());
    const hold = (on) => { this.held = on; $("talk").classList.toggle("on", on); this.gate(); };
    const talk = $("talk");
    talk.onpointerdown = () => hold(true);
    for (const event of ["pointerup", "pointercancel", "pointerleave", "blur"]) talk.addEventListener(event, () => hold(false));
    talk.onkeydown = (e) => { if ([" ", "Enter"].includes(e.key)) { e.preventDefault(); hold(true); } };
    talk.onkeyup = () => hold(false);
    $("listen").onchange = () => this.gate();
  }

  // What the run takes from a page.
  offer(camera, mic) {
    this.camera = camera;
    this.mic = mic;
    this.$("own").hidden = !(camera || mic);
    this.say("");
    this.label();
    if (!navigator.mediaDevices && (camera || mic)) {
      this.$("consent").disabled = true;
      this.say("Browsers give the camera to https pages only: start the run with --web-cert and --web-key, or open the page on its own machine.");
    }
  }

  label() {
    const what = [this.camera && "camera", this.mic && "microphone"].filter(Boolean).join(" and ");
    this.$("consent").textContent = this.media ? `Stop this device's ${what}` : `Use this device's ${what}`;
    this.$("talk").hidden = this.$("always").hidden = !(this.media && this.mic);
  }

  say(text) {
    this.$("own-state").textContent = text;
  }

  async start() {
    try {
      const media = await navigator.mediaDevices.getUserMedia({
        video: this.camera && { width: { ideal: 640 }, height: { ideal: 480 }, facingMode: { ideal: "environment" } },
        audio: this.mic && { channelCount: 1, echoCancellation: true, noiseSuppression: true },
      });
      this.media = media;
      this.stops = [];
      this.label();
      this.say("");
      this.gate();
      this.send(media);
      for (const track of media.getTracks()) track.onended = () => this.stop("The device was taken away.");
    } catch (error) {
      this.stop(error.name === "NotAllowedError" ? "The browser did not allow it." : `It did not work: ${error.message}`);
    }
  }

  stop(text = "") {
    if (!this.media) { if (text) this.say(text); return; }
    for (const track of this.media.getTracks()) { track.onended = null; track.stop(); }
    this.media = null;
    for (const stop of this.stops) stop();
    this.label();
    this.say(text);
  }

  // --- WebRTC ---

  async send(media) {
    if (!this.viewer) return this.sendOtherwise(media, "the run has no WebRTC");
    if (!window.RTCPeerConnection) return this.sendOtherwise(media, "this browser has no WebRTC");
    let connected = false;
    const link = new Link((over) => {
      if (this.media !== media) return;
      if (over) this.stop("Another page sends now.");
      else this.sendOtherwise(media, connected ? "the WebRTC connection ended" : "WebRTC does not connect");
    });
    this.stops.push(() => link.close());
    try {
      const senders = media.getTracks()
        .sort((one, other) => (one.kind < other.kind) - (one.kind > other.kind))  // video first
        .map((track) => link.connection.addTransceiver(track, { direction: "sendonly" }).sender);
      const send = senders.map(({ track }) => (track.kind === "video" ? "camera" : "mic"));
      const wish = await link.open({ viewer: this.viewer, send });
      connected = true;
      this.say("Sent by WebRTC");
      await Promise.all(senders.filter(({ track }) => track.kind === "video").map((sender) => fitted(sender, wish)));
    } catch {  // whatever it is, there is another way
      link.close();
    }
  }

  // --- WebSockets ---

  async sendOtherwise(media, why) {
    try {
      this.say(`Sent by WebSocket: ${why}`);
      if (this.camera) await this.sendPictures(media);
      if (this.mic) await this.sendSound(media);
    } catch (error) {
      this.stop(`It did not work: ${error.message}`);
    }
  }

  open(path) {
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${path}`);
    socket.binaryType = "arraybuffer";
    socket.onclose = (e) => { if (this.media) this.stop(e.code === 4001 ? "Another page sends now." : "The run takes no more."); };
    this.stops.push(() => { socket.onclose = null; socket.close(); });
    return socket;
  }

  async sendPictures(media) {
    const video = document.createElement("video");
    video.muted = video.playsInline = true;
    video.srcObject = new MediaStream(media.getVideoTracks());
    await video.play();
    const canvas = document.createElement("canvas");
    const socket = this.open("/camera");
    let wish = null, free = false, last = 0, watch = null;
    const send = () => {
      if (!free || !video.videoWidth || socket.readyState !== WebSocket.OPEN) return;
      const now = performance.now();
      if (now - last < 850 / wish.fps) return;
      free = false;
      last = now;
      const zoom = Math.min(1, wish.width_px / video.videoWidth, wish.height_px / video.videoHeight);
      canvas.width = Math.round(video.videoWidth * zoom);
      canvas.height = Math.round(video.videoHeight * zoom);
      canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => { if (blob && socket.readyState === WebSocket.OPEN) socket.send(blob); else free = true; }, "image/jpeg", QUALITY);
    };
    const next = () => { send(); if (this.media) video.requestVideoFrameCallback(next); };
    socket.onmessage = (message) => {
      wish = JSON.parse(message.data);
      free = true;
    };
    if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(next);
    else watch = setInterval(send, 30);
    // A picture that was never taken (the run only just opens) is followed by a newer one.
    const again = setInterval(() => { if (wish && performance.now() - last > 1000) { free = true; send(); } }, 250);
    this.stops.push(() => { clearInterval(watch); clearInterval(again); video.srcObject = null; });
  }

  async sendSound(media) {
    let context;
    const track = new MediaStream(media.getAudioTracks());
    let source;
    try {
      context = new AudioContext({ sampleRate: 16000 });
      source = context.createMediaStreamSource(track);
    } catch {  // Firefox does not resample between a microphone and a context
      await context?.close();
      context = new AudioContext();
      source = context.createMediaStreamSource(track);
    }
    this.stops.push(() => context.close());
    await context.audioWorklet.addModule("/worklet.js");
    const node = new AudioWorkletNode(context, "pcm", { numberOfOutputs: 0 });
    const socket = this.open("/mic");
    socket.onopen = () => socket.send(JSON.stringify({ rate_hz: Math.round(context.sampleRate) }));
    node.port.onmessage = (e) => {
      if (socket.readyState === WebSocket.OPEN && socket.bufferedAmount < 1e6) socket.send(e.data);
    };
    source.connect(node);
    await context.resume();
  }

  // Silence is sent while nobody is to be heard, so that the run's clock goes on.
  gate() {
    for (const track of this.media?.getAudioTracks() ?? []) track.enabled = this.held || this.$("listen").checked;
  }
}

// No larger and no more often than the run wants; where the line is thin, fewer pictures and not smaller ones.
function fitted(sender, wish) {
  const parameters = sender.getParameters();
  const { width, height } = sender.track.getSettings();
  parameters.degradationPreference = "maintain-resolution";
  for (const encoding of parameters.encodings) {
    encoding.maxFramerate = wish.fps;
    encoding.scaleResolutionDownBy = Math.max(1, width / wish.width_px, height / wish.height_px) || 1;
  }
  return sender.setParameters(parameters).catch(() => {});  // a browser may not have all of it
}
