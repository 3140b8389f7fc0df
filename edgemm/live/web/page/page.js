// The live page: follows the run's events, and carries questions back.
import { Capture } from "./capture.js";
import { Recorder } from "./record.js";
import { Timeline } from "./timeline.js";
import { History } from "./history.js";
import { Player } from "./player.js";
import { drawBoxes } from "./boxes.js";
import { showFrames, showNumbers, showParts, showStages } from "./numbers.js";

const $ = (id) => document.getElementById(id);
const name = (label) => label.split(",")[0];
const state = { sizes: {}, tasks: {}, sources: {}, detections: {}, camera: null, started: null, last: -1, labels: 0, frame: -1, since: null, found: null };
const answers = new Map();
const lines = new Map();
const timeline = new Timeline($("strip"), $("events"));
const capture = new Capture($);
const history = new History();
const player = new Player($("video"), {
  onPart: (part) => history.picture(part),
  onFrame: (frame) => { $("video").dataset.frame = state.frame = frame; boxes(); },
  onWay: (way) => { $("way").textContent = `Pictures by ${way}`; },
});
let socket = null;
let ended = false;

function make(tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/events`);
  socket.onopen = () => link("live", "good");
  socket.onmessage = (message) => heard(JSON.parse(message.data));
  socket.onclose = () => {
    link(ended ? "the run has ended" : "connection lost", ended ? "" : "off");
    capture.stop();
    setTimeout(connect, 1500);
  };
}

function link(text, className) {
  $("link").textContent = text;
  $("link").className = `pill ${className}`;
}

function heard(document) {
  if (document.page) return page(document.page);
  if (document.asked) return asked(document.asked.question_id);
  if (document.error && !document.type) return refused(document.error);
  if (document.type === "started" && state.started && state.started.wall_offset_s !== document.wall_offset_s) location.reload();
  if (document.id <= state.last) return;  // told before a connection was lost
  state.last = document.id;
  (handlers[document.type] || (() => {}))(document);
  timeline.add(document);
  if (shown(document.source)) history.result(document);
}

const handlers = {
  started: begin,
  status: sourceState,
  labels: (e) => showLabels(e),
  detections: found,
  caption: told,
  description: told,
  transcript: said,
  answer_delta: (e) => answered(e, (answers.get(e.question_id)?.text ?? "") + e.text, true),
  answer: (e) => answered(e, e.text, false),
  interrupted: () => document.querySelectorAll(".a.going").forEach((node) => node.classList.remove("going")),
  stats: numbers,
  summary: (e) => { ended = true; numbers(e); link("the run has ended", ""); },
};

function begin(e) {
  state.started = e;
  ended = false;
  $("bundle").textContent = e.bundle.split("/").pop();
  $("bundle").title = e.bundle;
  $("hearing").hidden = !e.config.mic;
  showParts($("parts"), e);
  capture.offer(e.config.cameras.includes("browser://"), e.config.mic === "browser://");
}

function page(p) {
  state.sizes = p.sizes_px;
  state.tasks = p.tasks;
  if (p.viewer) {
    capture.viewer = p.viewer;
    player.name(p.viewer);
  }
  $("asking").hidden = !p.ask;
  const switches = Object.keys(p.tasks).filter((task) => !["answer", "transcribe"].includes(task));
  buttons($("tasks"), switches, (task) => p.tasks[task], (task, on) => send({ task, on: !on }));
  const cameras = Object.keys(state.sizes);
  if (cameras.length && !cameras.includes(state.camera)) show(cameras[0]);
  $("cameras").hidden = cameras.length < 2;
  buttons($("cameras"), cameras, (camera) => camera === state.camera, (camera) => { show(camera); page(p); });
  fit();
}

// Buttons that are pressed or not; those that are there already stay, and with them the keyboard's focus.
function buttons(group, names, pressed, act) {
  for (const text of names) {
    let button = [...group.children].find((one) => one.textContent === text);
    if (!button) {
      button = make("button", text);
      button.type = "button";
      group.append(button);
    }
    button.setAttribute("aria-pressed", pressed(text));
    button.onclick = () => act(text, pressed(text));
  }
}

// --- pictures ---------------------------------------------------------------------------------

function show(camera) {
  state.camera = camera;
  $("caption").textContent = "";
  $("labels").replaceChildren();
  history.clear();
  lookBack(0);
  player.show(camera);
}

const shown = (source) => !state.camera || source === state.camera;

function fit() {
  const size = state.sizes[state.camera];
  if (!size) return;
  $("stage").style.aspectRatio = `${size[0]} / ${size[1]}`;
  $("stage").style.width = `min(100%, ${(54 * size[0]) / size[1]}vh)`;
  $("waiting").hidden = true;
  $("record").hidden = false;
  boxes();
}

function found(e) {
  const seen = (state.detections[e.source] ??= []);
  seen.push(e);
  if (seen.length > 60) seen.shift();
}

// What was found in the frame that is shown, or last before it.
function boxes() {
  const seen = state.tasks.detect === false ? [] : state.detections[state.camera] ?? [];
  const event = player.held ? state.found : seen.findLast((e) => e.frame <= state.frame);
  drawBoxes($("boxes"), state.sizes[state.camera], event);
}

new ResizeObserver(boxes).observe($("stage"));

function told(e) {
  if (shown(e.source) && !player.held) $("caption").textContent = e.text;
}

function showLabels(e) {
  // Names that change thirty times a second cannot be read.
  if (!shown(e.source) || player.held || e.t_s - state.labels < 0.25) return;
  state.labels = e.t_s;
  labels(e);
}

function labels(e) {
  $("labels").replaceChildren(...e.labels.slice(0, 3).map((item) => {
    const node = make("li", name(item.label));
    node.append(make("span", `${Math.round(100 * item.score)} %`));
    return node;
  }));
}

// Shows what was there so many seconds before looking back began; 0 is now.
function lookBack(seconds) {
  player.held = seconds < 0;
  state.since = player.held ? state.since ?? performance.now() : null;
  $("back").value = seconds;
  $("back").setAttribute("aria-valuetext", player.held ? `${-seconds} seconds ago` : "now");
  $("now").hidden = !player.held;
  timeline.look(seconds);
  if (!player.held) return boxes();
  const { picture, results } = history.at(state.since + 1000 * seconds);
  state.found = state.tasks.detect === false ? null : results.detections;
  $("caption").textContent = (results.caption ?? results.description)?.text ?? "";
  if (results.labels) labels(results.labels);
  if (picture) player.draw(picture);
}

$("back").oninput = () => lookBack(Number($("back").value));
$("now").onclick = () => lookBack(0);

function sourceState(e) {
  state.sources[e.source] = e;
  const looks = { live: "good", reconnected: "good", stalled: "warn", lost: "off", opening: "", ended: "" };
  const words = { reconnected: "back" };
  $("sources").replaceChildren(...Object.values(state.sources).map((s) => {
    const node = make("li", `${s.source}: ${words[s.state] || s.state}`, looks[s.state]);
    node.title = s.reason;
    return node;
  }));
}

// --- words ------------------------------------------------------------------------------------

function said(e) {
  let line = lines.get(e.utterance);
  if (!e.text.trim()) {
    if (line && e.final) { line.remove(); lines.delete(e.utterance); }
    return;
  }
  if (!line) {
    line = make("li");
    line.append(make("time", `${e.t_start_s.toFixed(1)} s`), make("span"));
    lines.set(e.utterance, line);
    $("transcript").append(line);
    while ($("transcript").children.length > 100) $("transcript").firstChild.remove();
  }
  line.lastChild.textContent = e.text;
  line.lastChild.className = e.final ? "" : "partial";
  $("transcript").scrollTop = $("transcript").scrollHeight;
}

function asked(id) {
  const question = $("question").dataset.asked || "";
  answered({ question_id: id, question }, answers.get(id)?.text ?? "", !answers.get(id));
}

function answered(e, text, going) {
  let entry = answers.get(e.question_id);
  if (!entry) {
    const node = make("li");
    node.append(make("p", e.question, "q"), make("p", "", "a"));
    $("answers").prepend(node);
    while ($("answers").children.length > 30) $("answers").lastChild.remove();
    entry = { node };
    answers.set(e.question_id, entry);
  }
  entry.text = text;
  entry.node.lastChild.textContent = text;
  entry.node.lastChild.classList.toggle("going", going);
}

function refused(error) {
  $("refused").textContent = error.message + (error.hint ? ` (${error.hint})` : "");
}

function send(document) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(document));
}

$("ask").onsubmit = (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question) return;
  $("refused").textContent = "";
  $("question").dataset.asked = question;
  $("question").value = "";
  send({ ask: question });
};

// --- numbers ----------------------------------------------------------------------------------

function numbers(e) {
  showNumbers($("numbers"), e);
  showStages($("stages"), e.stages_ms);
  showFrames($("frames"), e.sources);
}

new Recorder($, () => state.sizes[state.camera]);
connect();
