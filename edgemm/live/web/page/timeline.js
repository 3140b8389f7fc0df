// The last minute as a strip, and the recent events as a list.
import { SPAN_S } from "./history.js";

const LANES = ["sees", "says", "answers", "source"];
const LANE = {
  labels: 0, detections: 0, caption: 0, description: 0,
  transcript: 1, speech: 1, answer: 2, interrupted: 2,
  status: 3, error: 3, audio_gap: 3,
};

export class Timeline {
  constructor(canvas, list) {
    this.canvas = canvas;
    this.list = list;
    this.marks = [];
    this.now = 0;
    this.last = new Map();
    this.back = 0;
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  add(e) {
    if (e.t_s !== undefined) this.now = Math.max(this.now, e.t_s);
    if (LANE[e.type] !== undefined) this.marks.push({ t: e.t_s, lane: LANE[e.type], bad: e.type === "error" || e.state === "lost" });
    if (e.type === "stats" || e.type === "summary") this.draw();
    const text = line(e);
    // What is still so is told once.
    if (!text || (repeats(e) && this.last.get(`${e.source} ${e.type}`) === text)) return;
    this.last.set(`${e.source} ${e.type}`, text);
    const row = document.createElement("li");
    if (e.type === "error" || e.state === "lost") row.className = "error";
    for (const [tag, value, name] of [["time", `${e.t_s.toFixed(1)} s`, ""], ["span", kind(e), "kind"], ["span", text, "text"]]) {
      const node = document.createElement(tag);
      node.textContent = value;
      node.className = name;
      row.append(node);
    }
    this.list.prepend(row);
    while (this.list.children.length > 120) this.list.lastChild.remove();
  }

  // Marks the moment that is looked at, so many seconds from now.
  look(seconds) {
    this.back = seconds;
    this.draw();
  }

  draw() {
    this.marks = this.marks.filter((mark) => mark.t > this.now - SPAN_S);
    const scale = window.devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    this.canvas.width = width * scale;
    this.canvas.height = height * scale;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    const left = 56, lane = height / LANES.length;
    LANES.forEach((name, index) => {
      pen.fillStyle = colour("--quiet");
      pen.fillText(name, 0, (index + 0.5) * lane);
      pen.fillStyle = colour("--track");
      pen.fillRect(left, index * lane + 2, width - left, lane - 4);
    });
    for (const mark of this.marks) {
      pen.fillStyle = colour(mark.bad ? "--bad" : "--processed");
      pen.fillRect(left + (width - left) * (1 - (this.now - mark.t) / SPAN_S) - 2, mark.lane * lane + 2, 2, lane - 4);
    }
    if (this.back < 0) {
      pen.fillStyle = colour("--ink");
      pen.fillRect(left + (width - left) * (1 + this.back / SPAN_S) - 1, 0, 2, height);
    }
  }
}

const repeats = (e) => ["labels", "detections", "caption"].includes(e.type);

function kind(e) {
  return { labels: "sees", detections: "sees", caption: "caption", description: "saw", transcript: "heard", audio_gap: "sound", interrupted: "given up" }[e.type] ?? e.type;
}

function line(e) {
  switch (e.type) {
    case "started": return e.bundle.split("/").pop();
    case "labels": return e.labels.length && e.labels[0].score > 0.2 ? e.labels[0].label.split(",")[0] : "";
    case "detections": return counted(e.objects);
    case "caption": case "description": return e.text;
    case "transcript": return e.final ? e.text : "";
    case "answer": return `${e.text} (${e.question})`;
    case "interrupted": return e.what;
    case "status": return `${e.source} ${e.state}` + (e.reason && e.state !== "live" ? `: ${e.reason}` : "");
    case "error": return e.message + (e.hint ? ` (${e.hint})` : "");
    case "audio_gap": return `${(e.t_end_s - e.t_start_s).toFixed(2)} s missing`;
    case "summary": return `ended after ${e.duration_s.toFixed(1)} s`;
    default: return "";
  }
}

function counted(objects) {
  const counts = new Map();
  for (const item of objects) counts.set(item.label, (counts.get(item.label) ?? 0) + 1);
  return [...counts].map(([label, n]) => (n > 1 ? `${n} ${label}` : label)).sort().join(", ");
}
