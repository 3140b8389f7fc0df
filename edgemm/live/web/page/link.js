// A WebRTC connection to the server, which pings on a data channel. No address but the server's own is asked for or told.
const ANSWER_MS = 6000, EVERY_MS = 250;
// Of EVERY_MS: 2 s to connect, 3 s without a ping. They are counted, as a page that stands still hears nothing.
const CONNECT = 8, SILENCE = 12;

export class Link {
  // `onEnd(over)` once where it does not come about or ends; with `over` the server wants no other way to be tried.
  constructor(onEnd) {
    this.onEnd = onEnd;
    this.connection = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
    this.connection.onconnectionstatechange = () => ["failed", "closed"].includes(this.connection.connectionState) && this.close();
  }

  // Offers the transceivers that the connection has, and returns the server's answer when it is connected.
  async open(offer) {
    const channel = this.connection.createDataChannel("alive");
    const connected = new Promise((done) => { this.settle = done; });
    channel.onopen = () => this.settle(true);
    channel.onclose = () => this.close();
    channel.onmessage = (message) => {
      if (message.data === "over") return this.close(true);
      this.left = SILENCE;
      channel.send("pong");
    };
    await this.connection.setLocalDescription();
    const response = await fetch("/rtc/offer", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...offer, sdp: this.connection.localDescription.sdp }),
      signal: AbortSignal.timeout(ANSWER_MS),
    });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error?.message);
    await this.connection.setRemoteDescription({ type: "answer", sdp: answer.sdp });
    this.left = CONNECT;
    this.watch = setInterval(() => --this.left < 0 && this.close(), EVERY_MS);
    if (!(await connected)) throw new Error("it does not connect");
    return answer;
  }

  close(over = false) {
    const { onEnd } = this;
    this.onEnd = null;
    clearInterval(this.watch);
    this.settle?.(false);
    this.connection.close();
    onEnd?.(over);
  }
}
