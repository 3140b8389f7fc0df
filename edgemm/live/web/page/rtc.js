// Pictures by WebRTC. The last rows of each picture say which frame it is (as in live/web/video.py): what was found in a
// frame is drawn over that very frame.
import { Link } from "./link.js";

const STRIP_PX = 16, BITS = 40, SALT = 0x5a;
const UNREADABLE = 30;

export class Rtc {
  // `onPicture(video, width, height, frame)` for each picture, `onEnd()` once where it does not come about or ends.
  constructor(onPicture, onEnd) {
    this.onPicture = onPicture;
    this.onEnd = onEnd;
    this.unreadable = 0;
    this.video = document.createElement("video");
    this.video.muted = this.video.playsInline = true;
    const strip = document.createElement("canvas");
    strip.width = BITS;
    strip.height = 1;
    this.strip = strip.getContext("2d", { willReadFrequently: true });
    this.strip.imageSmoothingEnabled = false;
  }

  async open(viewer, source) {
    try {
      this.link = new Link(() => this.close());
      const { receiver } = this.link.connection.addTransceiver("video", { direction: "recvonly" });
      receiver.jitterBufferTarget = 0;
      await this.link.open({ viewer, source });
      this.video.srcObject = new MediaStream([receiver.track]);
      this.next();
      await this.video.play();
    } catch {  // whatever it is, there are other pictures
      this.close();
    }
  }

  next() {
    this.video.requestVideoFrameCallback(() => {
      if (!this.onEnd) return;
      this.draw();
      this.next();
    });
  }

  draw() {
    const { videoWidth, videoHeight } = this.video;
    const frame = this.number(videoWidth, videoHeight);
    if (frame !== null) {
      this.unreadable = 0;
      this.onPicture(this.video, videoWidth, videoHeight - STRIP_PX, frame);
    } else if (++this.unreadable > UNREADABLE) this.close();
  }

  number(width, height) {
    this.strip.drawImage(this.video, 0, height - STRIP_PX / 2 - 1, width, 2, 0, 0, BITS, 1);
    const { data } = this.strip.getImageData(0, 0, BITS, 1);
    const bytes = [];
    for (let at = 0; at < BITS; at += 8) {
      let byte = 0;
      for (let bit = at; bit < at + 8; bit++) byte = 2 * byte + (data[4 * bit + 1] > 127 ? 1 : 0);
      bytes.push(byte);
    }
    const check = bytes.pop();
    if (((bytes.reduce((sum, byte) => sum + byte) + SALT) & 255) !== check) return null;
    return bytes.reduce((number, byte) => 256 * number + byte, 0);
  }

  close() {
    const { onEnd } = this;
    this.onEnd = null;
    this.link?.close();
    this.video.srcObject = null;
    onEnd?.();
  }
}
