// Sound of one channel in pieces of 32 ms, as 16-bit PCM.
class Pcm extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Int16Array(Math.round(sampleRate * 0.032));
    this.filled = 0;
  }

  process(inputs) {
    const samples = inputs[0][0];
    if (!samples) return true;
    for (const sample of samples) {
      this.piece[this.filled++] = Math.max(-1, Math.min(1, sample)) * 32767;
      if (this.filled === this.piece.length) {
        const full = this.piece.buffer;
        this.piece = new Int16Array(this.piece.length);
        this.filled = 0;
        this.port.postMessage(full, [full]);
      }
    }
    return true;
  }
}

registerProcessor("pcm", Pcm);
