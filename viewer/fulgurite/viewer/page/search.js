// Finds layers, heads, tokens, requests and traces by what a person types. Pure but for the list that it fills.
import { named, short, tag } from "./words.js";

const MOST = 10;

/** What matches `text`: [{label, hint, go}], the best first. */
export function search(text, app) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return [];
  return [...places(wanted, app), ...requests(wanted, app), ...tokens(wanted, app)].slice(0, MOST);
}

/** "layer 3 head 5", "L3H5", "3.5", "expert 2 layer 1", "layer 4". */
function places(wanted, app) {
  const replica = app.focused;
  if (!replica) return [];
  const { layers, heads, plateCount } = replica.look, found = [];
  const both = wanted.match(/^(?:l(?:ayer)?)?\s*(\d+)\s*[ .:·]*\s*(?:h(?:ead)?)\s*(\d+)$/) ?? wanted.match(/^(\d+)[.:](\d+)$/);
  if (both && +both[1] < layers && +both[2] < heads) found.push({ kind: "head", layer: +both[1], index: +both[2] });
  const expert = wanted.match(/^l(?:ayer)?\s*(\d+)\s*e(?:xpert)?\s*(\d+)$/);
  if (expert && +expert[1] < layers && +expert[2] < plateCount) found.push({ kind: "ffn", layer: +expert[1], index: +expert[2] });
  const ffn = wanted.match(/^l(?:ayer)?\s*(\d+)(?:\s*ffn)?$/);
  if (ffn && +ffn[1] < layers) found.push({ kind: "ffn", layer: +ffn[1], index: 0 });
  return found.map((node) => ({
    label: node.kind === "head" ? `layer ${node.layer} · head ${node.index}` : `layer ${node.layer} · ${plateCount > 1 ? `expert ${node.index}` : "FFN"}`,
    hint: replica.header.name,
    go: () => app.choose({ key: replica.key, ...node }),
  }));
}

function requests(wanted, app) {
  const found = new Map();
  for (const replica of app.replicas.values()) {
    for (const chunk of replica.history.chunks) {
      for (const [id, trace] of chunk.requests) {
        const isTrace = trace && trace.toLowerCase().startsWith(wanted);
        if (isTrace || id.toLowerCase().includes(wanted)) found.set(id, { replica, isTrace, trace });
      }
    }
  }
  return [...found].reverse().slice(0, 4).map(([id, { replica, isTrace, trace }]) => ({
    label: isTrace ? `trace ${short(trace)}` : `request ${short(id)}`,
    hint: `${replica.header.name}: only its light`,
    go: () => { app.onlyRequest(id); const token = replica.history.last(Infinity, (one) => one.requestId === id); if (token) app.chooseToken(token, { stay: true }); },
  }));
}

function tokens(wanted, app) {
  const found = [];
  for (const replica of app.replicas.values()) {
    for (const token of replica.history.back(Infinity)) {
      if (token.text?.toLowerCase().includes(wanted)) found.push({ label: named(token), hint: `${replica.header.name}, position ${token.position}`, at: token.at, go: () => app.chooseToken(token) });
      if (found.length >= 24) break;
    }
  }
  return found.sort((a, b) => b.at - a.at).slice(0, 6);
}

/** The field in the bar. */
export class SearchField {
  constructor(node, app) {
    Object.assign(this, { app, input: node.querySelector("input"), list: node.querySelector("ol"), found: [], at: 0 });
    this.input.addEventListener("input", () => this.fill());
    this.input.addEventListener("keydown", (event) => this.key(event));
    this.input.addEventListener("blur", () => setTimeout(() => { this.list.hidden = true; }, 150));
  }

  open() { this.input.focus(); this.input.select(); }

  fill() {
    this.found = search(this.input.value, this.app);
    this.at = 0;
    this.show();
  }

  show() {
    this.list.hidden = !this.input.value.trim();
    const rows = this.found.map((one, i) => tag("li", { "aria-selected": i === this.at, onmousedown: () => this.take(i) }, tag("span", {}, one.label), tag("small", {}, one.hint)));
    this.list.replaceChildren(...(rows.length ? rows : [tag("li", {}, tag("small", {}, "nothing that is kept matches"))]));
  }

  key(event) {
    event.stopPropagation();
    if (event.key === "Escape") { this.input.value = ""; this.list.hidden = true; this.input.blur(); }
    else if (event.key === "Enter") this.take(this.at);
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      this.at = Math.max(0, Math.min(this.found.length - 1, this.at + (event.key === "ArrowDown" ? 1 : -1)));
      this.show();
      event.preventDefault();
    }
  }

  take(i) {
    this.found[i]?.go();
    this.list.hidden = true;
    this.input.blur();
  }
}
