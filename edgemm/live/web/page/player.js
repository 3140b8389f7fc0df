// The pictures of /stream.mjpg. They are read here and not by an <img>, since each part says which frame it is: what
// was found in a frame is drawn over that very frame.
export class Player {
  constructor(canvas, onPart, onFrame) {
    this.canvas = canvas;
    this.onPart = onPart;
    this.onFrame = onFrame;
    this.held = false;
    this.abort = null;
  }

  show(source) {
    this.abort?.abort();
    const abort = (this.abort = new AbortController());
    const again = () => { if (!abort.signal.aborted) setTimeout(() => this.abort === abort && this.show(source), 1000); };
    this.follow(`/stream.mjpg?source=${encodeURIComponent(source)}`, abort.signal).then(again, again);
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
      if (!this.held) await this.draw(newest);
    }
  }

  async draw(part) {
    const picture = await createImageBitmap(new Blob([part.jpeg], { type: "image/jpeg" }));
    const { canvas } = this;
    if (canvas.width !== picture.width || canvas.height !== picture.height) {
      canvas.width = picture.width;
      canvas.height = picture.height;
    }
    canvas.getContext("2d").drawImage(picture, 0, 0);
    picture.close();
    this.onFrame(part.frame);
  }
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
