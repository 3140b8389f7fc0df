// The last minute of a camera, to look back at: some of its pictures and what was told of them, by when they came.
export const SPAN_S = 60;
export const EVERY_MS = 200;

export class History {
  constructor() {
    this.clear();
  }

  clear() {
    this.pictures = [];
    this.results = [];
  }

  picture({ frame, jpeg }) {
    const at = performance.now();
    if (at - (this.pictures.at(-1)?.at ?? -EVERY_MS) >= EVERY_MS) keep(this.pictures, { at, frame, jpeg });
  }

  result(e) {
    keep(this.results, { at: performance.now(), e });
  }

  // The picture of a moment, the last result of each type by then, and what was found in that picture or before it.
  at(moment) {
    const picture = this.pictures.findLast((one) => one.at <= moment) ?? this.pictures[0];
    const results = {};
    for (const { at, e } of this.results) {
      if (e.type === "detections" ? e.frame <= picture?.frame : at <= moment) results[e.type] = e;
    }
    return { picture, results };
  }
}

function keep(list, one) {
  list.push(one);
  while (list[0].at < one.at - 1000 * SPAN_S) list.shift();
}
