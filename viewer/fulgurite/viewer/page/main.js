// Puts the page together: the stream fills each replica's history, one person's clock plays it, the picture and the
// panels show it. Everything that one person can change is here; nothing of it is told to the server.
import { Clock, DELAY_S } from "./clock.js";
import { Colors } from "./colors.js";
import { Commands } from "./commands.js";
import { Connection } from "./connection.js";
import { card } from "./card.js";
import { Chunk, History, above } from "./history.js";
import { Lights, hueOf } from "./lights.js";
import * as link from "./link.js";
import { Overlay } from "./overlay.js";
import { ARCS, Pace } from "./pace.js";
import { panels } from "./panels.js";
import { Look, Picture } from "./picture.js";
import { SearchField } from "./search.js";
import { Strip, TimeBar } from "./strip.js";
import { duration, figure, named, percent, short, tag } from "./words.js";

const SIDE_BY_SIDE = 4, KEEP_S = 150, REFILL_S = 4, AFTERGLOW_S = 2.5, PANELS_MS = 140, PANELS_HELD_MS = 1500, PANELS_SLICE_MS = 5, PIECES_APART_MS = 90, LATENCIES = 256;
const LIVE_ARCS = ARCS.at(-1), FEWEST_ARCS = 72, GAP_SHOWN_S = 5, LINGER_S = 1, ENDS_KEPT = 256, LOOK_BACK = 400;
const HAND_RESTS_MS = 300, STILL_AFTER_MS = 350;
const ONE = (selector) => document.querySelector(selector);

class App {
  constructor() {
    Object.assign(this, {
      replicas: new Map(), clock: new Clock(), node: null, hovered: null, token: null, chosen: null, only: { request: null, layer: null, isHidden: false },
      theme: "dark", hasPanels: true, isBare: false, gaps: [], marks: [], follow: false, pace: new Pace(), turnedAt: -Infinity, jobs: [], dirty: true, stale: true, litUntil: 0, missed: null,
      prefersCalm: matchMedia("(prefers-reduced-motion: reduce)").matches, pictures: 0,
    });
    this.wanted = link.read(location.hash);
    this.scene = ONE(".scene");
    const address = new URL("ws" + location.search, location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    address.hash = "";
    this.connection = new Connection(address.href, (header, arrays, size) => this.heard(header, arrays, size), (up) => this.connected(up));
  }

  start() { this.connection.open(); }

  // what the server says

  heard(header, arrays) {
    if (this.isBlind) return;
    const hear = { hello: this.onHello, replica: this.onReplica, scale: this.onScale, tokens: this.onTokens, event: this.onEvent, state: this.onState, gap: this.onGap }[header.kind];
    hear?.call(this, header, arrays);
  }

  onHello(header, arrays) {
    if (this.hello) {  // the connection was made again: what is known stays
      if (header.story !== this.hello.story) location.reload();
      return;
    }
    this.hello = header;
    Object.assign(this, { constants: header.constants, channels: header.channels, levels: header.levels, phases: header.phases, palettes: header.palettes, palette: header.palettes[0].name });
    try {
      this.picture = new Picture(ONE(".picture"), header, arrays);
    } catch (error) {
      this.cannotDraw(error);
      return;
    }
    this.colors = new Colors(header, arrays);
    this.overlay = new Overlay(this.scene, this);
    this.commands = new Commands(this, header.commands);
    this.commands.bar(document);
    this.panels = panels(this, ONE(".side"));
    this.strip = new Strip(ONE(".strip"), this);
    this.timebar = new TimeBar(ONE(".timebar"), this);
    this.searchField = new SearchField(ONE(".search"), this);
    this.listen();
    this.restore(this.wanted);
    document.fonts?.ready.then(() => { for (const body of this.picture.bodies.values()) body.labelScale = 0; this.touch(); });
    requestAnimationFrame((time) => this.frame(time));
  }

  /** No WebGL2 here: pictures drawn by the server, if it can. */
  cannotDraw(error) {
    this.isBlind = true;
    this.notice(`${error.message}: the server draws instead`, true);
    setTimeout(() => location.replace(new URL("remote/" + location.search, location.href)), 1200);
  }

  onReplica(header, arrays) {
    const known = this.replicas.get(header.key), look = new Look(header, arrays, this.constants);
    const isSame = known && JSON.stringify(known.header.topology) === JSON.stringify(header.topology);
    if (isSame) { known.header = header; known.look.header = header; this.touch(); return; }
    const lights = new Lights(look.shape, this.constants, (color) => this.colors.rgb(color), LIVE_ARCS);
    lights.isCalm = this.picture.shows.calm;
    this.replicas.set(header.key, { key: header.key, header, look, lights, history: new History(KEEP_S), state: {}, latency: null, latencies: [], ends: new Map() });
    this.picture.put(header.key, look, lights);
    this.filter();
    this.arrange();
  }

  onScale(header) {
    const replica = this.replicas.get(header.key);
    if (!replica) return;
    const isFirst = !replica.lights.display.head;
    replica.lights.setScale(header.kinds);
    if (isFirst) this.refill();
    this.touch();
  }

  onTokens(header, arrays) {
    const replica = this.replicas.get(header.key);
    if (!replica) return;
    const chunk = new Chunk(header, arrays), { playhead, mode } = this.clock;
    if (!replica.history.add(chunk)) return;
    if (chunk.live && mode === "live" && playhead !== null && chunk.first <= playhead) {  // what comes late is lit now
      const from = above(chunk.at, playhead - REFILL_S), to = above(chunk.at, playhead);
      if (to > from) { replica.lights.apply(chunk, from, to, playhead); this.lit(replica, [[chunk, from, to]]); }
    } else if (!chunk.live && playhead !== null && chunk.last > playhead - REFILL_S && chunk.first <= playhead) this.refill();
    this.stale = true;
  }

  onEvent(header) {
    const replica = this.replicas.get(header.key);
    if (!replica) return;
    if (header.what === "started") replica.history.prompts.set(header.request, header.prompt_tokens);
    else if (header.what === "finished" || header.what === "aborted") {
      const now = this.connection.now(), at = header.at_s < now - 5 ? header.at_s : now;  // clocks of hosts may be off by little
      replica.ends.set(header.request, at + LINGER_S);
      if (replica.ends.size > ENDS_KEPT) replica.ends.delete(replica.ends.keys().next().value);
    }
  }

  onState(header) {
    for (const state of header.replicas) {
      const replica = this.replicas.get(state.key);
      if (!replica) continue;
      if (state.gap_s !== null && state.gap_s !== replica.state.gap_s) this.gaps.push(state.gap_s);
      replica.state = state;
    }
    this.collector = header;
    this.waiting();
    this.stale = true;
  }

  onGap(header) {
    const now = this.connection.now();
    this.missed = { tokens: header.tokens, at: now };
    this.gaps.push(now);
    this.notice(`${header.tokens.toLocaleString("en")} tokens skipped: this page was too slow to take them`, true);
  }

  connected(up) {
    this.isUp = up;
    if (up) this.notice("");
    else this.notice(this.hello ? "The viewer does not answer; trying again." : "", true);
    this.waiting();
  }

  /** What is shown while there is nothing to show. */
  waiting() {
    const node = ONE(".waiting"), said = this.collector;
    node.hidden = this.replicas.size > 0 || !said;
    document.body.classList.toggle("empty", !node.hidden);
    if (!node.hidden) { node.querySelector("h2").textContent = said.waiting; node.querySelector("p").innerHTML = said.advice; }
    if (said?.lost && this.replicas.size) this.notice(said.lost, true);
    else if (this.lostShown && !said?.lost) this.notice("");
    this.lostShown = Boolean(said?.lost && this.replicas.size);
  }

  notice(text, isBad = false) {
    const node = ONE(".notice");
    node.textContent = text;
    node.hidden = !text;
    node.classList.toggle("bad", isBad);
    clearTimeout(this.noticeTimer);
    if (text) this.noticeTimer = setTimeout(() => { node.hidden = true; }, 6000);
  }

  // what is shown

  get shown() {
    const keys = [...this.replicas.keys()];
    const wanted = this.chosen ? keys.filter((key) => this.chosen.includes(key)) : keys.slice(0, SIDE_BY_SIDE);
    return wanted.length ? wanted : keys.slice(0, SIDE_BY_SIDE);
  }

  /** The replica that the panels are about: that of the chosen node or token, else the chosen one, else the first. */
  get focused() {
    const key = this.node?.key ?? this.token?.key ?? this.lead;
    return this.replicas.get(this.shown.includes(key) ? key : this.shown[0]) ?? null;
  }

  /** The token that is spoken of: the chosen one, else the last before the playhead. */
  current(key) {
    if (this.token?.key === key) return this.token;
    const { request } = this.only;
    return this.replicas.get(key)?.history.last(this.clock.playhead ?? Infinity, request ? (token) => token.requestId === request : undefined) ?? null;
  }

  /** The newest token at or before that one that carries a channel. */
  newest(key, channel) {
    const token = this.current(key);
    if (!token) return null;
    if (token.column(channel)) return token;
    let looked = 0;
    for (const other of this.replicas.get(key).history.back(token.at)) {
      if (other.column(channel)) return other;
      if (++looked > LOOK_BACK) break;
    }
    return null;
  }

  newestDeep(key) { return this.newest(key, "head_contribution") ?? this.newest(key, "attended_positions"); }

  /** Requests under way at the playhead, with the index of their colour. */
  requests() {
    const found = new Map(), now = this.clock.playhead ?? 0;
    for (const key of this.shown) {
      for (const [chunk, i0, i1] of this.replicas.get(key).history.between(now - this.constants.rate_over_s, now)) {
        const seen = new Set(chunk.arrays.request_index.data.subarray(i0, i1));
        for (const index of seen) found.set(chunk.requests[index][0], chunk.fact("color", chunk.arrays.request_index.data.indexOf(index)) ?? 0);
      }
    }
    return [...found].sort(([a], [b]) => (a < b ? -1 : 1));
  }

  get window() {
    const to = this.connection.now() - DELAY_S, spans = [...this.replicas.values()].map((replica) => replica.history.span).filter(Boolean);
    return [Math.max(to - this.hello.history_s, Math.min(to - 10, ...spans.map(([from]) => from))), to];
  }

  gapText(replica) {
    const { state } = replica, now = this.connection.now();
    if (state.gap_s && now - state.gap_s < GAP_SHOWN_S) return `${(state.missing ?? 0).toLocaleString("en")} tokens missing: ${state.gap_reason}`;
    if (this.missed && now - this.missed.at < GAP_SHOWN_S) return `${this.missed.tokens.toLocaleString("en")} tokens skipped here`;
    return state.trouble ?? "";
  }

  touch() { this.dirty = this.stale = true; this.addressStale = true; }

  arrange() {
    const keys = this.shown, box = this.scene.getBoundingClientRect(), { picture } = this;
    const one = box.width / Math.max(1, keys.length), bare = this.isBare || !this.hasHud;
    picture.insets = bare ? { top: 8, bottom: 8 } : { top: one < 560 ? 78 : 84, bottom: 72 };
    picture.arrange(keys, Math.max(64, box.width), Math.max(64, box.height), Math.min(2, window.devicePixelRatio || 1));
    const slots = Math.max(FEWEST_ARCS, Math.floor(LIVE_ARCS / Math.max(1, keys.length)));
    for (const replica of this.replicas.values()) if (replica.lights.bolts.count !== slots) { replica.lights.bolts.resize(slots); this.refillSoon = true; }
    this.admit();
    this.touch();
  }

  // time passes

  frame(time) {
    requestAnimationFrame((next) => this.frame(next));
    const { clock, picture } = this, followed = this.wasDrawn;
    this.wasDrawn = false;
    if (this.refillSoon) { this.refillSoon = false; clock.jump = true; }
    const ticked = clock.tick(this.connection.now());
    if (ticked.jumped) this.refill();
    else if (ticked.to > ticked.from) this.play(ticked.from, ticked.to);
    this.travel();
    const isLit = clock.mode !== "paused" && clock.playhead < this.litUntil, isMoving = picture.camera.isMoving(time / 1000) || this.follow;
    if (this.dirty || ticked.jumped || isLit || isMoving) {
      if (followed && !this.isFixedScale) this.learn(time - this.drawnAt);
      this.draw(time);
    } else if ((picture.scale < 1 || picture.shed) && time - this.drawnAt > STILL_AFTER_MS && this.drawnAt !== this.finedAt) this.fine(time);
    this.write(time);
  }

  /** Whether a hand turns, moves or zooms the model: pictures come first then. */
  isTurned(time) { return time - this.turnedAt < HAND_RESTS_MS; }

  /** Sequences whose request ended before the playhead leave the cache. */
  settle(replica, now) {
    for (const [request, at] of replica.ends) if (at <= now) replica.lights.carpet.end(request);
  }

  /** Light the tokens between two places of the playhead. */
  play(from, to) {
    for (const replica of this.replicas.values()) {
      this.settle(replica, to);
      const due = replica.history.between(from, to);
      for (const [chunk, i0, i1] of due) replica.lights.apply(chunk, i0, i1);
      if (due.length) this.lit(replica, due);
    }
  }

  lit(replica, due) {
    this.litUntil = this.clock.playhead + AFTERGLOW_S;
    this.stale = true;
    if (this.clock.mode !== "live") return;
    for (const [chunk, i0, i1] of due) for (let i = i0; chunk.live && i < i1; i++) { const ended = chunk.fact("ended_s", i); if (ended !== null) (replica.unshown ??= []).push(ended); }
  }

  /** The scene as it was at the playhead. */
  refill() {
    const now = this.clock.playhead;
    if (now === null) return;
    for (const replica of this.replicas.values()) {
      replica.lights.clear();
      replica.unshown = [];
      for (const [chunk, i0, i1] of replica.history.between(now - REFILL_S, now)) replica.lights.apply(chunk, i0, i1);
      this.settle(replica, now);
    }
    this.litUntil = now + AFTERGLOW_S;
    this.touch();
  }

  draw(time) {
    this.wasTurned = this.isTurned(time);
    this.picture.scale = this.isFixedScale ? 1 : this.pace.scale(this.wasTurned);
    this.picture.shed = this.isFixedScale ? 0 : this.pace.left(this.wasTurned);
    this.picture.draw(this.clock.playhead ?? 0, time / 1000);
    this.dirty = false;
    this.wasDrawn = true;
    this.drawnAt = time;
    this.pictures++;
    this.ring();
    const now = this.connection.now();
    for (const replica of this.replicas.values()) {
      if (!replica.unshown?.length) continue;
      replica.latencies.push(...replica.unshown.map((ended) => now - ended).filter((latency) => latency >= 0));
      replica.latencies.splice(0, replica.latencies.length - LATENCIES);
      replica.unshown.length = 0;
      replica.latency = replica.latencies.length ? [...replica.latencies].sort((a, b) => a - b)[replica.latencies.length >> 1] : null;
    }
  }

  /** A picture that stands is drawn once more, whole and at full size. */
  fine(time) {
    this.picture.scale = 1;
    this.picture.shed = 0;
    this.stale = true;
    this.picture.draw(this.clock.playhead ?? 0, time / 1000);
    this.dirty = false;
    this.finedAt = this.drawnAt;
  }

  /** A picture came so long after the one in the frame before. */
  learn(ms) {
    const { arcs } = this.pace;
    this.pace.learn(ms, this.wasTurned);
    if (this.pace.arcs !== arcs) this.admit();
  }

  /** How many arcs may live: those that do are left alone. */
  admit() {
    const arcs = this.isFixedScale ? LIVE_ARCS : this.pace.arcs, each = Math.max(FEWEST_ARCS, Math.floor(arcs / Math.max(1, this.shown.length)));
    for (const { lights } of this.replicas.values()) lights.bolts.limit = each;
  }

  /** The camera goes with the lightning of the newest token. */
  travel() {
    const { camera } = this.picture ?? {};
    if (!camera || !this.follow) return;
    const replica = this.focused, token = replica && this.current(replica.key);
    if (!token) return;
    const share = Math.min(1, Math.max(0, (this.clock.playhead - token.at) / this.constants.spread_s)), { spine, layers } = replica.look;
    const at = share * layers, low = Math.min(layers - 1, Math.floor(at)), t = at - low;
    const wanted = [0, 1, 2].map((k) => spine[3 * low + k] * (1 - t) + spine[3 * low + 3 + k] * t);
    camera.front = camera.front ? camera.front.map((part, k) => part + 0.08 * (wanted[k] - part)) : wanted;
  }

  /**
   * What is written beside the picture, a few milliseconds of it per frame; while the model is turned it waits, and comes
   * piece by piece, some frames apart: the browser takes long to show what was painted anew.
   */
  write(time) {
    const since = time - (this.writtenAt ?? -Infinity), isTurned = this.isTurned(time);
    if (since < (isTurned ? PANELS_HELD_MS : PANELS_MS)) return;
    if (isTurned && time - (this.pieceAt ?? -Infinity) < PIECES_APART_MS) return;
    this.pieceAt = time;
    if (!this.jobs.length) {
      if (!this.stale && this.clock.mode === "paused") return;
      this.stale = false;
      this.jobs = this.pieces(time);
    }
    const until = performance.now() + (isTurned ? 0 : PANELS_SLICE_MS);
    do this.jobs.shift()?.(); while (this.jobs.length && performance.now() < until);
    if (!this.jobs.length) this.writtenAt = time;
  }

  /** Everything that is written, piece by piece. */
  pieces(time) {
    const all = [() => this.bar()];
    if (!this.isBare) {
      all.push(() => this.overlay.draw());
      if (this.hasStrip) all.push(() => this.strip.draw());
      all.push(() => this.timebar.draw());
      if (this.hasPanels) for (const panel of this.panels) if (panel.isDue()) all.push(() => panel.draw());
      if (time - (this.markedAt ?? 0) > 2500) { this.markedAt = time; all.push(() => this.remark()); }
    }
    all.push(() => this.hover(), () => { if (this.addressStale && !this.isScrubbing) { this.addressStale = false; this.address(); } });
    return all;
  }

  /** The address bar says what is shown. Browsers take few such calls a minute: one for each change. */
  address() {
    const said = link.write(this);
    if (said === this.addressed && location.hash === said.replace(/^#$/, "")) return said;
    history.replaceState(null, "", said);
    this.addressed = said;
    return said;
  }

  bar() {
    const { clock, picture } = this, [, to] = this.window;
    ONE(".behind").textContent = clock.mode === "live" ? "" : `−${Math.max(0, to - clock.playhead).toFixed(1)} s${clock.mode === "playing" && clock.speed !== 1 ? ` ×${figure(clock.speed, 2)}` : ""}`;
    const shown = this.shown, nav = ONE(".replicas"), said = [...this.replicas].map(([key, { header, state }]) => [key, header.name, state.state, state.tokens_per_s, shown.includes(key)]);
    const text = JSON.stringify(said);
    if (text !== this.barText) {
      this.barText = text;
      nav.replaceChildren(...said.map(([key, name, state, rate, on]) => tag("button", { class: "replica", "data-replica": key, "aria-pressed": String(on), title: `${key}. Show or hide it.`, onclick: () => this.toggleReplica(key) }, tag("i", { class: `dot ${state ?? ""}` }), name, rate === null || rate === undefined ? null : tag("small", {}, `${Math.round(rate)} tok/s`))));
    }
    const pressed = { live: clock.mode === "live", pause: clock.mode === "paused", contribution: picture.shows.contribution, panels: this.hasPanels, theme: this.theme === "light" };
    picture.camera.presets.forEach((_, i) => { pressed[`camera_${i + 1}`] = picture.camera.preset === i && !picture.camera.fixed; });
    this.commands.press(pressed);
  }

  /** Tokens that stand out: slow, surprising, uncertain. */
  remark() {
    this.marks = [];
    for (const key of this.shown) {
      const { history } = this.replicas.get(key), limits = this.limits(history);
      let count = 0;
      for (const token of history.back(Infinity)) {
        if (++count > 4000) break;
        for (const kind of ["slow", "surprising", "uncertain"]) if (this.stands(token, kind, limits)) this.marks.push([token.at, kind]);
      }
    }
  }

  /** From where on a token stands out, by what is kept of its replica. */
  limits(history) {
    const steps = [], entropies = [];
    let count = 0;
    for (const token of history.back(Infinity)) {
      if (++count > 4000) break;
      const step = token.fact("step_s"), entropy = token.fact("entropy");
      if (step !== null) steps.push(step);
      if (entropy !== null) entropies.push(entropy);
    }
    const at = (values, q) => values.sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(q * values.length))] ?? Infinity;
    const median = at(steps, 0.5);
    return { slow: Math.max(at(steps, 0.99), 1.5 * median), surprising: Math.log(0.05), uncertain: Math.max(at(entropies, 0.97), 1e-9) };
  }

  stands(token, kind, limits) {
    const [name, is] = { slow: ["step_s", (v) => v >= limits.slow], surprising: ["logprob", (v) => v <= limits.surprising], uncertain: ["entropy", (v) => v >= limits.uncertain] }[kind];
    const value = token.fact(name);
    return value !== null && is(value);
  }

  // what a person does

  togglePause() {
    if (this.clock.mode === "paused") this.token = null;
    this.clock.toggle();
  }

  goLive() { this.token = null; this.clock.goLive(); this.touch(); }
  seek(to) { this.token = null; this.clock.seek(to, this.window); this.touch(); }
  seekBy(seconds) { this.seek((this.clock.playhead ?? 0) + seconds); }

  faster(factor) { this.clock.setSpeed(this.clock.speed * factor); this.touch(); }

  /** To the next or previous moment at which a token of a shown replica came. */
  step(by) {
    const here = this.token?.at ?? this.clock.playhead, shown = this.shown.map((key) => this.replicas.get(key).history), { request } = this.only;
    const wanted = request ? (token) => token.requestId === request : undefined;
    const next = by > 0 ? shown.map((history) => history.forth(here + 1e-6, wanted).next().value) : shown.map((history) => history.back(here - 1e-6, wanted).next().value);
    const found = next.filter(Boolean).sort((a, b) => by * (a.at - b.at))[0];
    this.clock.pause();
    if (found) this.chooseToken(found);
  }

  jump(kind) {
    const here = this.token?.at ?? (this.clock.mode === "live" ? -Infinity : this.clock.playhead);
    const found = [];
    for (const key of this.shown) {
      const { history } = this.replicas.get(key), limits = this.limits(history), wanted = (token) => this.stands(token, kind, limits);
      const next = history.forth(here + 1e-6, wanted).next().value ?? history.forth(-Infinity, wanted).next().value;
      if (next) found.push(next);
    }
    const later = found.filter((token) => token.at > here), token = (later.length ? later : found).sort((a, b) => a.at - b.at)[0];
    if (!token) { this.notice(`no ${kind} token in what is kept`); return; }
    this.chooseToken(token);
    const why = { slow: () => `step of ${duration(token.fact("step_s"))}`, surprising: () => `probability ${percent(token.probability)}`, uncertain: () => `entropy ${figure(token.fact("entropy"))} nats` }[kind];
    this.notice(`${named(token)}: ${why()}`);
  }

  loop() {
    const { clock } = this;
    if (clock.loop) { clock.loop = null; this.notice("no loop"); return; }
    const token = this.focused && this.current(this.focused.key);
    if (!token) return;
    const times = [];
    for (const one of this.focused.history.back(Infinity, (other) => other.requestId === token.requestId)) times.push(one.at);
    this.token = null;
    clock.around(Math.min(...times) - 0.1, Math.max(...times) + 0.6);
    this.notice(`looping request ${short(token.requestId)}`);
  }

  showCamera(index) { this.follow = false; this.picture.camera.show(index); this.touch(); }
  turn(azimuth, elevation) { this.picture.camera.orbit(azimuth, elevation); this.turned(); }
  zoom(factor) { this.picture.camera.near(factor); this.turned(); }

  /** A hand turned the model. */
  turned() {
    const now = performance.now();
    if (!this.isTurned(now)) {
      this.pace.turn();
      this.hovered = null;  // it is elsewhere now
      ONE(".tip").hidden = true;
    }
    this.turnedAt = now;
    this.touch();
  }

  toggleFollow() {
    this.follow = !this.follow;
    const { camera } = this.picture;
    camera.front = null;
    camera.zoom = this.follow ? Math.max(camera.zoom, 2.1) : 1;
    this.notice(this.follow ? "the camera follows the lightning" : "the camera stands");
  }

  showReplicas(keys) { this.chosen = keys?.length ? keys : null; this.arrange(); }

  toggleReplica(key) {
    const { shown } = this;
    const left = shown.includes(key) ? shown.filter((other) => other !== key) : [...shown, key];
    this.showReplicas(left.length ? left : shown);
  }

  nextReplica(by) {
    const keys = [...this.replicas.keys()];
    if (!keys.length) return;
    const at = this.shown.length === 1 ? keys.indexOf(this.shown[0]) + by : by > 0 ? 0 : keys.length - 1;
    this.showReplicas([keys[(at + keys.length) % keys.length]]);
  }

  /** Choose a replica: the panels are about it. */
  chooseReplica(key) {
    this.lead = key;
    if (this.node && this.node.key !== key) this.node = null;
    if (this.token && this.token.key !== key) this.token = null;
    if (!this.shown.includes(key)) this.showReplicas([...this.shown, key]);
    this.touch();
  }

  /** Choose a node: every view is about it. */
  choose(node) {
    this.node = node;
    if (node) this.lead = node.key;
    if (this.token && node && this.token.key !== node.key) this.token = null;
    this.touch();
  }

  /** Choose a token: stand at it, when its lightning is there. */
  chooseToken(token, { stay = false } = {}) {
    this.token = token;
    this.lead = token.key;
    if (this.node && this.node.key !== token.key) this.node = { ...this.node, key: token.key };
    if (!this.shown.includes(token.key)) this.showReplicas([...this.shown, token.key]);
    if (!stay) {
      this.clock.pause();
      this.clock.loop = null;
      this.clock.playhead = Math.max(token.at, Math.min(token.at + 0.8 * this.constants.spread_s, this.window[1]));
      this.clock.jump = true;
    }
    this.touch();
  }

  /** The most active head of the last token; in the present it stands still there, so that the answer keeps its token. */
  chooseMostActive() {
    const replica = this.focused, token = replica && this.newest(replica.key, "head_write");
    if (!token) return;
    const write = token.column("head_write"), { heads, topology } = replica.look;
    let best = -1;
    for (let n = 0; n < write.length; n++) if (n % heads < topology.layer_heads[Math.floor(n / heads)] && !(write[n] <= (write[best] ?? -1))) best = n;
    if (best < 0) return;
    const layer = Math.floor(best / heads), index = best % heads;
    this.choose({ key: replica.key, kind: "head", layer, index });
    if (this.clock.mode === "live") this.chooseToken(token);
    this.notice(`layer ${layer} · head ${index} wrote most at ${named(token)}: ${figure(write[best])} of the residual stream`);
  }

  chooseLeastProbable() {
    let least = null;
    for (const key of this.shown) for (const token of this.replicas.get(key).history.back(Infinity)) if (token.probability !== null && (!least || token.probability < least.probability)) least = token;
    if (!least) return;
    this.chooseToken(least);
    this.notice(`${named(least)}: probability ${percent(least.probability)}, the least of what is kept`);
  }

  moveNode(layers, heads) {
    const replica = this.focused;
    if (!replica) return;
    const { look } = replica, node = this.node ?? { key: replica.key, kind: "head", layer: 0, index: 0 };
    const layer = Math.min(look.layers - 1, Math.max(0, node.layer + layers));
    const width = { head: look.topology.layer_heads[layer], ffn: look.plateCount, cell: look.cellCount }[node.kind];
    this.choose({ ...node, key: replica.key, layer, index: Math.min(width - 1, Math.max(0, node.index + heads)) });
  }

  onlyRequest(id) { this.only.request = id; this.filter(); this.clock.jump = true; this.touch(); if (id) this.notice(`only request ${short(id)}; I shows all`); }

  toggleRequest() {
    if (this.only.request) { this.onlyRequest(null); return; }
    const token = this.focused && this.current(this.focused.key);
    if (token) this.onlyRequest(token.requestId);
  }

  /** Only the chosen node's layer, or all but it; again: every layer. */
  toggleLayer(isHidden) {
    const { only } = this, again = only.layer !== null && only.isHidden === isHidden;
    Object.assign(only, { layer: again ? null : this.node?.layer ?? 0, isHidden });
    this.filter();
    this.clock.jump = true;
    this.notice(only.layer === null ? "every layer" : `${isHidden ? "without" : "only"} layer ${only.layer}; Esc shows all`);
  }

  filter() {
    const { request, layer, isHidden } = this.only;
    for (const { lights } of this.replicas.values()) {
      lights.filter = request ? (chunk, i) => chunk.request(i)[0] === request : null;
      lights.setLayer(layer, isHidden);
    }
  }

  toggleHud() { this.hasHud = !this.hasHud; for (const part of [".huds", ".legend"]) ONE(part).hidden = !this.hasHud; this.arrange(); }
  toggleStrip() { this.hasStrip = !this.hasStrip; ONE(".strip").hidden = !this.hasStrip; }
  togglePanels() { this.hasPanels = !this.hasPanels; ONE(".side").hidden = !this.hasPanels; }
  toggleContribution() { this.picture.shows.contribution = !this.picture.shows.contribution; this.touch(); }

  nextPalette() {
    const names = this.palettes.map((palette) => palette.name);
    this.usePalette(names[(names.indexOf(this.palette) + 1) % names.length]);
    this.notice(`palette ${this.palette}${this.colors.palette.is_safe ? ", safe for colour-blind eyes" : ""}`);
  }

  usePalette(name) {
    if (!this.palettes.some((palette) => palette.name === name)) return;
    this.palette = name;
    this.colors.use(name);
    this.picture.usePalette(name);
    this.clock.jump = true;
    this.touch();
  }

  useTheme(theme) { this.theme = theme; document.documentElement.dataset.theme = theme; this.touch(); }

  useCalm(on) {
    this.picture.shows.calm = this.picture.camera.isCalm = on;
    for (const { lights } of this.replicas.values()) lights.isCalm = on;
    this.clock.jump = true;
    this.touch();
  }

  async copyLink() {
    const address = location.origin + location.pathname + this.address();
    try { await navigator.clipboard.writeText(address); this.notice("the link was copied"); } catch { this.notice("the link is in the address bar"); }
  }

  toggleHelp() {
    const dialog = ONE(".help");
    if (dialog.open) { dialog.close(); return; }
    if (!dialog.childElementCount) dialog.append(...this.commands.help());
    dialog.showModal();
  }

  clear() {
    if (ONE(".help").open) { ONE(".help").close(); return; }
    if (this.node) this.node = null;
    else if (this.token) this.token = null;
    else if (this.only.request || this.only.layer !== null) { Object.assign(this.only, { request: null, layer: null }); this.filter(); this.clock.jump = true; }
    this.touch();
  }

  /** What is on screen, with its figures, as a PNG file. */
  savePicture() {
    this.fine(performance.now());
    const { canvas, viewports } = this.picture, factor = canvas.width / this.picture.size[0], sheet = document.createElement("canvas");
    Object.assign(sheet, { width: canvas.width, height: canvas.height });
    const pen = sheet.getContext("2d"), isLight = this.theme === "light";
    if (isLight) pen.filter = "invert(1) hue-rotate(180deg)";
    pen.drawImage(canvas, 0, 0);
    pen.filter = "none";
    for (const { key, x, y, width } of this.hasHud ? viewports : []) {
      const { header, state } = this.replicas.get(key), line = (text, at, size, right, color) => {
        pen.font = `${Math.round(size * factor)}px "Fulgurite Inter", sans-serif`;
        pen.textAlign = right ? "right" : "left";
        pen.fillStyle = color;
        pen.fillText(text ?? "", (right ? x + width - 18 : x + 18) * factor, (y + at) * factor);
      };
      const ink = isLight ? "#121726" : "#e3e9f8", soft = isLight ? "#39456b" : "#a8b8e2";
      line(`${header.title}  ${header.name}`, 32, 20, false, ink);
      line(header.model_line, 54, 12.5, false, soft);
      line(state.badge, 74, 11, false, isLight ? "#a65a00" : "#ffb454");
      line(state.speed, 32, 14.5, true, ink);
      line(state.memory, 54, 12.5, true, soft);
    }
    sheet.toBlob((blob) => {
      const name = `fulgurite-${new Date().toISOString().slice(0, 19).replace(/[-:]/g, "").replace("T", "-")}.png`;
      const anchor = tag("a", { href: URL.createObjectURL(blob), download: name });
      anchor.click();
      setTimeout(() => URL.revokeObjectURL(anchor.href), 10000);
    }, "image/png");
  }

  // pointing

  listen() {
    const { scene } = this;
    this.hasHud = this.hasStrip = true;
    new ResizeObserver(() => this.arrange()).observe(scene);
    let held = null;
    scene.addEventListener("pointerdown", (event) => {
      if (event.target.closest("button, a, dialog")) return;
      const box = scene.getBoundingClientRect();
      this.pointer = [event.clientX - box.left, event.clientY - box.top];
      held = { x: event.clientX, y: event.clientY, far: 0, moves: event.shiftKey || event.button !== 0 };
      scene.setPointerCapture(event.pointerId);
    });
    scene.addEventListener("pointermove", (event) => {
      const box = scene.getBoundingClientRect();
      this.pointer = [event.clientX - box.left, event.clientY - box.top];
      if (!held) { this.hover(); return; }
      const dx = event.clientX - held.x, dy = event.clientY - held.y, { camera } = this.picture;
      held.far += Math.hypot(dx, dy);
      Object.assign(held, { x: event.clientX, y: event.clientY });
      if (held.moves) camera.move(dx / box.height, -dy / box.height); else camera.orbit(-0.3 * dx, 0.3 * dy);
      this.turned();
    });
    scene.addEventListener("pointerup", (event) => {
      if (held && held.far < 4 && event.button === 0) this.click();
      held = null;
    });
    scene.addEventListener("pointercancel", () => { held = null; });
    scene.addEventListener("pointerleave", () => { this.pointer = null; this.hover(); });
    scene.addEventListener("dblclick", () => this.fly());
    scene.addEventListener("contextmenu", (event) => event.preventDefault());
    scene.addEventListener("wheel", (event) => { event.preventDefault(); this.zoom(Math.exp(-0.0012 * event.deltaY)); }, { passive: false });
    window.addEventListener("hashchange", () => this.restore(link.read(location.hash)));
  }

  under() { return this.pointer ? this.picture.pick(...this.pointer, this.clock.playhead ?? 0) : null; }

  click() {
    const found = this.under();
    if (found) { const { depth: _depth, ...node } = found; this.choose(node); } else this.choose(null);
  }

  /** Go to the chosen node. */
  fly() {
    const node = this.node, place = node && this.picture.place(node), viewport = node && this.picture.viewports.find((one) => one.key === node.key);
    if (!place || !viewport) return;
    const { camera } = this.picture, far = [place.x - viewport.x - viewport.width / 2, place.y - viewport.y - viewport.height / 2];
    camera.move(-far[0] / viewport.height, far[1] / viewport.height);
    this.zoom(camera.zoom < 2.4 ? 2.4 / camera.zoom : 1);
  }

  /** The node under the pointer, and what is said of it. */
  hover() {
    const tip = ONE(".tip"), found = this.isTurned(performance.now()) ? null : this.under();
    this.hovered = found;
    this.scene.classList.toggle("over", Boolean(found));
    this.ring();
    if (!found) { if (!this.tipped) tip.hidden = true; return; }
    const replica = this.replicas.get(found.key), said = card(replica, found, this.current(found.key), this.newestDeep(found.key), this.clock.playhead, this);
    const more = said.rows.slice(1, 2).concat(said.rows.slice(0, 1)).filter(([, value]) => value !== "not captured");
    this.tip(this.pointer[0], this.pointer[1], [tag("b", {}, said.title), tag("p", {}, said.sentence), said.list[0] ? tag("small", {}, `${said.listTitle.split(" (")[0]}: ${said.list[0].join(" ")}`) : more[0] ? tag("small", {}, `${more[0][0]} ${more[0][1]}`) : null]);
  }

  tip(x, y, children) {
    const tip = ONE(".tip"), box = this.scene.getBoundingClientRect();
    tip.replaceChildren(...children.filter(Boolean));
    tip.hidden = false;
    const width = tip.offsetWidth, height = tip.offsetHeight;
    tip.style.left = `${Math.max(4, Math.min(box.width - width - 6, x + 18 + width > box.width ? x - width - 14 : x + 18))}px`;
    tip.style.top = `${Math.max(4, Math.min(box.height - height - 6, y - height / 2))}px`;
  }

  /** A token of the strip under the pointer. */
  tipToken(token, event) {
    this.tipped = Boolean(token);
    if (!token) { ONE(".tip").hidden = true; return; }
    const box = this.scene.getBoundingClientRect(), value = (name, unit) => (token.fact(name) === null ? "not captured" : `${figure(token.fact(name))}${unit}`);
    this.tip(event.clientX - box.left - 130, box.height - 70, [
      tag("b", {}, named(token)), tag("p", {}, `position ${token.position}, ${token.probability === null ? "probability not captured" : `probability ${percent(token.probability)}`}`),
      tag("small", {}, `log-probability ${value("logprob", " nats")} · entropy ${value("entropy", " nats")} · step ${duration(token.fact("step_s")) ?? "not captured"} · request ${short(token.requestId)}`)]);
  }

  /** Around the chosen node. */
  ring() {
    const ring = ONE(".ring"), node = this.node ?? this.hovered, place = node && this.shown.includes(node.key) ? this.picture.place(node) : null;
    ring.hidden = !place?.inside;
    if (ring.hidden) return;
    const size = Math.max(14, 2 * place.reach + 8);
    ring.style.cssText = `left:${place.x}px;top:${place.y}px;width:${size}px`;
    ring.classList.toggle("pinned", Boolean(this.node));
  }

  // links

  restore(wanted) {
    const { picture } = this, { camera } = picture;
    this.chosen = wanted.replicas;
    if (wanted.camera !== null) { camera.show(wanted.camera); camera.from = null; }
    if (wanted.turn?.length === 5) [camera.azimuth, camera.elevation, camera.zoom, ...camera.pan] = wanted.turn;
    if (wanted.view?.length === 10) camera.fixed = { position: wanted.view.slice(0, 3), focal: wanted.view.slice(3, 6), up: wanted.view.slice(6, 9), angle: wanted.view[9] };
    this.node = wanted.node;
    this.lead = wanted.lead;
    this.only = { request: wanted.request, layer: wanted.layer, isHidden: wanted.isHidden };
    this.filter();
    picture.shows.contribution = wanted.contribution;
    if (wanted.palette) this.usePalette(wanted.palette);
    if (wanted.theme) this.useTheme(wanted.theme);
    for (const part of wanted.hidden) if (part in picture.parts) picture.parts[part] = false;
    this.hasPanels = wanted.panels;
    ONE(".side").hidden = !wanted.panels;
    this.isBare = wanted.bare;
    this.isFixedScale = wanted.isFull;
    document.body.classList.toggle("bare", wanted.bare);
    this.useCalm(wanted.calm ?? this.prefersCalm);
    if (wanted.at !== null) this.restoreTime(wanted);
    this.arrange();
  }

  /** Stand at a moment once it is here: the past comes after the present. */
  restoreTime(wanted, tries = 0) {
    const spans = [...this.replicas.values()].map((replica) => replica.history.span).filter(Boolean), { clock } = this;
    const isHere = clock.playhead !== null && spans.some(([from, to]) => from <= wanted.at && wanted.at <= to + 1);
    if (!isHere && tries < 40) { setTimeout(() => this.restoreTime(wanted, tries + 1), 250); return; }
    if (!isHere) { this.notice("that moment is no longer kept: this is the present", true); return; }
    clock.mode = wanted.speed ? "playing" : "paused";
    clock.speed = wanted.speed ?? 1;
    clock.playhead = wanted.at;
    clock.jump = true;
    const { token } = wanted;
    this.token = token ? this.replicas.get(token.key)?.history.last(Infinity, (one) => one.requestId === token.request && one.sequence === token.sequence && one.position === token.position) ?? null : null;
    this.touch();
  }
}

const app = new App();
window.fulgurite = app;  // for who looks inside: tests, and the console
app.start();
export { app, hueOf };
