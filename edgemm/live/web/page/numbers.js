// What a run measures: the figures, the waterfall of stages, the books of frames.
const ON_FRAMES = ["take", "classify", "detect", "caption", "describe", "emit"];

function make(tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

const round = (value) => (value == null ? "–" : value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));

export function showNumbers(list, e) {
  const rows = [
    ["frames / s", e.fps.toFixed(1), ""],
    ["latency", round(e.latency_ms.p50), "ms"],
    ["latency p99", round(e.latency_ms.p99), "ms"],
    ["overhead", round(e.overhead_ms.p50), "ms"],
    ["memory", e.rss_mb.toFixed(0), "MB"],
    ["running for", clock(e.t_s), ""],
  ];
  list.replaceChildren(...rows.map(([label, value, unit]) => {
    const row = make("div");
    const figure = make("dd", value);
    if (unit) figure.append(" ", make("small", unit));
    row.append(make("dt", label), figure);
    return row;
  }));
}

function clock(seconds) {
  const whole = Math.floor(seconds);
  const two = (n) => String(n).padStart(2, "0");
  return (whole >= 3600 ? `${Math.floor(whole / 3600)}:` : "") + `${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}

export function showParts(table, e) {
  table.tBodies[0].replaceChildren(...Object.keys(e.runtime).map((part) => {
    const row = make("tr");
    row.append(make("td", part), make("td", e.runtime[part]), make("td", e.precision[part] ?? "–"));
    return row;
  }));
}

// Stages of one frame follow each other; the others start for themselves, and have a scale of their own.
export function showStages(box, stages) {
  const known = ON_FRAMES.filter((name) => stages[name]);
  let at = 0;
  const ofFrames = known.map((name) => {
    const row = { name, start: at, ...stages[name] };
    at += stages[name].p50 ?? 0;
    return row;
  });
  const others = Object.keys(stages).filter((name) => !known.includes(name));
  const alone = others.map((name) => ({ name, start: 0, ...stages[name] }));
  box.replaceChildren(...waterfall("of a frame", ofFrames), ...waterfall("beside it", alone));
}

function waterfall(title, rows) {
  if (!rows.length) return [];
  const full = Math.max(1e-3, ...rows.map((row) => row.start + (row.p50 ?? 0))) * 1.15;
  const share = (value) => `${(100 * Math.min(Math.max(value, 0), full)) / full}%`;
  const lines = rows.map((row) => {
    const line = make("div", undefined, "stage");
    const bar = make("span", undefined, "bar");
    bar.setAttribute("aria-hidden", "true");
    const tail = make("b");
    tail.style.left = share(row.start);
    tail.style.width = share(Math.min(row.p99 ?? 0, full - row.start));
    const body = make("i");
    body.style.left = share(row.start);
    body.style.width = share(row.p50 ?? 0);
    bar.append(tail, body);
    const figure = make("span", round(row.p50), "ms");
    figure.append(make("span", " ms", "hidden"));
    line.append(make("span", row.name.replace("_", " ")), bar, figure);
    return line;
  });
  return [make("p", title, "quiet small"), ...lines];
}

export function showFrames(box, sources) {
  box.replaceChildren(...Object.entries(sources).map(([name, s]) => {
    const part = make("div");
    if (!s.captured && s.audio_s) {
      part.append(make("div", `${name}: ${s.audio_s.toFixed(1)} s of sound, ${s.audio_gaps || "no"} gaps`, "sum"));
      return part;
    }
    const dropped = Object.values(s.dropped).reduce((sum, n) => sum + n, 0);
    part.append(make("div", `${name}: ${s.captured} captured = ${s.processed} processed + ${dropped} dropped + ${s.in_flight} in flight`, "sum"));
    const stack = make("div", undefined, "stack");
    stack.setAttribute("aria-hidden", "true");
    for (const n of [s.processed, dropped, s.in_flight]) {
      const piece = make("i");
      piece.style.width = `${(100 * n) / Math.max(1, s.captured)}%`;
      stack.append(piece);
    }
    part.append(stack);
    const reasons = Object.entries(s.dropped).map(([reason, n]) => `${n} ${reason.replace("_", " ")}`);
    if (s.reconnects) reasons.push(`back ${s.reconnects} times`);
    if (reasons.length) part.append(make("div", reasons.join(", "), "quiet"));
    return part;
  }));
}
