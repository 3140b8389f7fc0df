// Boxes over the picture, in the picture's own pixels.
const COLOURS = ["#5ed6be", "#ffc454", "#7ab0ff", "#ff8cc8", "#bee66e"];

export function drawBoxes(canvas, size, event) {
  const scale = window.devicePixelRatio || 1;
  const { clientWidth, clientHeight } = canvas;
  canvas.width = clientWidth * scale;
  canvas.height = clientHeight * scale;
  if (!size || !event) return;
  const pen = canvas.getContext("2d");
  const zoom = Math.min(canvas.width / size[0], canvas.height / size[1]);
  pen.translate((canvas.width - size[0] * zoom) / 2, (canvas.height - size[1] * zoom) / 2);
  pen.lineWidth = 2 * scale;
  pen.font = `600 ${13 * scale}px system-ui, sans-serif`;
  pen.textBaseline = "top";
  for (const item of event.objects) box(pen, item, zoom, scale, size[0] * zoom);
}

function box(pen, item, zoom, scale, right) {
  const [x0, y0, x1, y1] = item.box_px.map((value) => value * zoom);
  const key = item.track_id ?? [...item.label].reduce((sum, letter) => sum + letter.charCodeAt(0), 0);
  const colour = COLOURS[key % COLOURS.length];
  pen.strokeStyle = colour;
  pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
  const text = `${item.label.split(",")[0]} ${Math.round(100 * item.score)} %`;
  const height = 20 * scale;
  const top = y0 >= height ? y0 - height : y0;
  const width = pen.measureText(text).width + 10 * scale;
  const left = Math.max(0, Math.min(x0 - scale, right - width));
  pen.fillStyle = colour;
  pen.fillRect(left, top, width, height);
  pen.fillStyle = "#08110f";
  pen.fillText(text, left + 5 * scale, top + 3.5 * scale);
}
