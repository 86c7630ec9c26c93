// What was emitted, as rows of chips, one row per sequence; and the bar of the kept past above them.
import { duration, named, percent, printed, short, tag } from "./words.js";

const LANES = 3, CHIPS = 60, HOLD_S = 1.5, LOOK_S = 40;

/** The rows of one replica: a row keeps its place while it is shown; the one silent longest makes room. */
class Board {
  constructor() { this.lanes = []; }

  /** Rows at the playhead: [[lane, tokens newest first]]. */
  rows(history, time, wanted) {
    const found = new Map();
    let count = 0;
    for (const token of history.back(time, wanted)) {
      if (token.at < time - LOOK_S || ++count > 600) break;
      if (!found.has(token.lane)) found.set(token.lane, []);
      const row = found.get(token.lane);
      if (row.length < CHIPS) row.push(token);
    }
    const order = [...found.keys()];
    this.lanes = this.lanes.filter((lane) => found.has(lane));
    for (const lane of order) {
      if (this.lanes.includes(lane)) continue;
      if (this.lanes.length < LANES) { this.lanes.push(lane); continue; }
      const silent = this.lanes.reduce((a, b) => (found.get(a)[0].at <= found.get(b)[0].at ? a : b));
      if (found.get(lane)[0].at - found.get(silent)[0].at > HOLD_S) this.lanes[this.lanes.indexOf(silent)] = lane;
    }
    const unseen = order.filter((lane) => !this.lanes.includes(lane) && time - found.get(lane)[0].at <= HOLD_S).length;
    return [this.lanes.map((lane) => [lane, found.get(lane)]), unseen];
  }
}

export class Strip {
  constructor(node, app) {
    Object.assign(this, { node, app, boards: new Map(), chips: new WeakMap(), sections: new Map() });
    node.addEventListener("click", (event) => {
      const chip = event.target.closest(".chip"), lane = event.target.closest(".lane > span");
      if (chip) app.chooseToken(this.chips.get(chip));
      else if (lane) app.onlyRequest(app.only.request === lane.title ? null : lane.title);
    });
    node.addEventListener("pointermove", (event) => {
      const chip = event.target.closest(".chip");
      app.tipToken(chip ? this.chips.get(chip) : null, event);
    });
    node.addEventListener("pointerleave", () => app.tipToken(null));
  }

  draw() {
    const { app } = this;
    const made = app.shown.map((key) => this._section(key));
    if (made.some((section, i) => this.node.children[i] !== section) || this.node.children.length !== made.length) this.node.replaceChildren(...made);
  }

  /** The part of one replica: built once, brought up to date. */
  _section(key) {
    const { app } = this, replica = app.replicas.get(key), { state = {} } = replica;
    if (!this.boards.has(key)) this.boards.set(key, new Board());
    if (!this.sections.has(key)) this.sections.set(key, tag("section", { "data-replica": key }, tag("header"), tag("div")));
    const section = this.sections.get(key), [head, body] = section.children;
    const only = app.only.request, [rows, unseen] = this.boards.get(key).rows(replica.history, app.clock.playhead ?? 0, only ? (token) => token.requestId === only : undefined);
    const words = [replica.header.topology.model_name];
    if (state.inter_token_p50_s) words.push(`${duration(state.inter_token_p50_s)}/token`);
    if (state.first_token_p50_s) words.push(`${duration(state.first_token_p50_s)} to first`);
    if (replica.header.tokens_shown !== "text") words.push(replica.header.tokens_shown === "ids" ? "ids only" : "token text is off");
    const said = [state.state, replica.header.name, words.join("  ·  "), unseen, app.gapText(replica)];
    if (said.join() !== section.said) {
      section.said = said.join();
      head.replaceChildren(...[tag("i", { class: `dot ${state.state ?? ""}` }), tag("b", {}, said[1]), tag("small", {}, said[2]), unseen ? tag("small", {}, `+ ${unseen} more sequences`) : null, said[4] ? tag("span", { class: "gap" }, said[4]) : null].filter(Boolean));
    }
    if (!rows.length) body.replaceChildren(tag("div", { class: "empty" }, app.clock.mode === "live" ? "No token here yet." : "No token was kept from before this moment."));
    else this._lanes(section, body, rows);
    return section;
  }

  _lanes(section, body, rows) {
    section.lanes ??= new Map();
    for (const lane of section.lanes.keys()) if (!rows.some(([name]) => name === lane)) section.lanes.delete(lane);
    const made = rows.map(([lane, tokens]) => this._lane(section.lanes, lane, tokens));
    if (made.some((row, i) => body.children[i] !== row) || body.children.length !== made.length) body.replaceChildren(...made);
  }

  /** A row: what is in it stays, new chips come in front. */
  _lane(lanes, lane, tokens) {
    const { app } = this, [first] = tokens;
    if (!lanes.has(lane)) lanes.set(lane, tag("div", { class: "lane" }, tag("span", { title: first.requestId }, short(first.requestId) + (first.sequence ? `·${first.sequence}` : "")), tag("div", { class: "chips" })));
    const row = lanes.get(lane), chips = row.children[1], tint = app.colors.request(first.fact("color") ?? 0);
    if (row.tint !== tint) { row.tint = tint; row.style.setProperty("--tint", tint); }
    let at = chips.firstChild;
    for (const token of tokens) {
      const chip = this._chip(token);
      if (at === chip) { at = at.nextSibling; continue; }
      chips.insertBefore(chip, at);
    }
    while (at) { const gone = at; at = at.nextSibling; gone.remove(); }
    return row;
  }

  _chip(token) {
    const known = (token.chunk.chips ??= [])[token.i];
    if (known) { const on = token.is(this.app.token); if (on !== known.isOn) { known.isOn = on; known.classList.toggle("on", on); } return known; }
    const text = token.text, p = token.probability, isWord = text === null || /^\s/.test(text);
    const chip = tag("button", { class: `chip${isWord ? " word" : ""}${p === null ? " unknown" : ""}`, style: p === null ? "" : `--p:${(100 * p).toFixed(1)}%`, tabindex: "-1", "aria-label": `${named(token)} ${p === null ? "" : percent(p)}` },
      text === null ? (token.fact("token_id") >= 0 ? `#${token.fact("token_id")}` : `·${token.position}`) : printed(text));
    token.chunk.chips[token.i] = chip;
    this.chips.set(chip, token);
    return this._chip(token);
  }
}

/** Tokens over the kept past, gaps, marks of what stands out, and the playhead. */
export class TimeBar {
  constructor(node, app) {
    Object.assign(this, { node, app, canvas: node.querySelector("canvas"), width: 1, height: 1 });
    new ResizeObserver(([{ contentRect }]) => { Object.assign(this, { width: contentRect.width, height: contentRect.height }); app.stale = true; }).observe(this.canvas);
    const scrub = (event) => {
      const box = node.getBoundingClientRect(), [from, to] = app.window;
      app.seek(from + Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * (to - from));
    };
    node.addEventListener("pointerdown", (event) => { node.setPointerCapture(event.pointerId); scrub(event); });
    node.addEventListener("pointermove", (event) => { if (event.buttons & 1) scrub(event); });
  }

  /** A colour of the page's theme. */
  _color(name) {
    if (this.theme !== this.app.theme) Object.assign(this, { theme: this.app.theme, style: new Map() });
    if (!this.style.has(name)) this.style.set(name, getComputedStyle(document.documentElement).getPropertyValue(name).trim());
    return this.style.get(name);
  }

  draw() {
    const { app, canvas } = this, ratio = Math.min(2, window.devicePixelRatio || 1), { width, height } = this;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) { canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio); }
    const pen = canvas.getContext("2d", { willReadFrequently: true }), [from, to] = app.window, x = (time) => (time - from) / (to - from) * width;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const color = (name) => this._color(name);
    const bins = new Map();
    for (const key of app.shown) for (const [slot, count] of app.replicas.get(key).history.counts) bins.set(slot, (bins.get(slot) ?? 0) + count);
    const seen = [...bins].filter(([slot]) => slot / 2 >= from && slot / 2 < to), peak = Math.max(1, ...seen.map(([, count]) => count));
    pen.fillStyle = app.clock.mode === "live" ? color("--accent") : color("--warm");
    pen.globalAlpha = 0.38;
    const step = width / (to - from) / 2;
    for (const [slot, count] of seen) pen.fillRect(x(slot / 2), height - 1 - count / peak * (height - 12), Math.max(1, step - 1), count / peak * (height - 12));
    pen.globalAlpha = 1;
    for (const [at, kind] of app.marks) { pen.fillStyle = { slow: "#ff6b57", surprising: "#ffb454", uncertain: "#5fd49a" }[kind]; pen.fillRect(x(at) - 0.75, 1, 1.5, 5); }
    pen.fillStyle = color("--warm");
    for (const at of app.gaps) { pen.globalAlpha = 0.6; pen.fillRect(x(at) - 2, 0, 4, height); pen.globalAlpha = 1; }
    if (app.clock.loop) { pen.fillStyle = color("--accent"); pen.globalAlpha = 0.18; pen.fillRect(x(app.clock.loop[0]), 0, x(app.clock.loop[1]) - x(app.clock.loop[0]), height); pen.globalAlpha = 1; }
    pen.fillStyle = color("--dim");
    pen.font = '10.5px "Fulgurite Inter", sans-serif';
    pen.strokeStyle = color("--panel");  // a rim, so that bars behind the words do not cut them
    pen.lineWidth = 4;
    pen.lineJoin = "round";
    for (const [words, x] of [[`${Math.round(to - from)} s ago`, 8], [`most ${2 * peak} tokens/s`, 66]]) { pen.strokeText(words, x, 18); pen.fillText(words, x, 18); }
    pen.fillStyle = app.clock.mode === "live" ? "#ff5454" : color("--warm");
    pen.fillRect(x(app.clock.playhead ?? to) - 1, 0, 2, height);
  }
}
