// Saves what the page shows, picture and boxes, as a video file of this browser.
export class Recorder {
  constructor($, size) {
    this.$ = $;
    this.size = size;
    this.recorder = null;
    const able = window.MediaRecorder && HTMLCanvasElement.prototype.captureStream;
    if (!able) $("record").remove();
    else $("record").onclick = () => (this.recorder ? this.recorder.stop() : this.start());
  }

  start() {
    const [width, height] = this.size() ?? [640, 480];
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const pen = canvas.getContext("2d");
    const began = Date.now();
    const draw = () => {
      pen.drawImage(this.$("video"), 0, 0, width, height);
      if (this.$("boxes").width) pen.drawImage(this.$("boxes"), 0, 0, width, height);
      this.$("record-state").textContent = `${Math.round((Date.now() - began) / 1000)} s`;
    };
    const type = ["video/mp4", "video/webm"].find((name) => MediaRecorder.isTypeSupported(name));
    const chunks = [];
    const recorder = (this.recorder = new MediaRecorder(canvas.captureStream(10), { mimeType: type }));
    const timer = setInterval(draw, 100);
    recorder.ondataavailable = (e) => chunks.push(e.data);
    recorder.onstop = () => {
      clearInterval(timer);
      this.recorder = null;
      this.label(false);
      this.save(new Blob(chunks, { type }), type.split("/")[1]);
    };
    draw();
    recorder.start(1000);
    this.label(true);
  }

  label(on) {
    this.$("record").textContent = on ? "Stop and save" : "Record";
    this.$("record").classList.toggle("on", on);
  }

  save(blob, suffix) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `edgemm-${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}.${suffix}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    this.$("record-state").textContent = `${link.download}, ${(blob.size / 1e6).toFixed(2)} MB`;
  }
}
