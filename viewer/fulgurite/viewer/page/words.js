// How values are said: numbers with their units, tokens on one line, one sentence for what is chosen. Pure.

export function figure(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return null;
  const text = Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-4) ? value.toExponential(digits - 1) : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−");
}

export const signed = (value, digits = 3) => (value > 0 ? "+" : "") + figure(value, digits);
export const percent = (share) => share === null ? null : share <= 0 || share >= 1 ? `${Math.round(100 * share)} %` : share < 0.0005 ? "< 0.05 %" : share >= 0.9995 ? "> 99.9 %" : `${(100 * share).toPrecision(share < 0.1 ? 2 : 3).replace(/\.?0+$/, "")} %`;

/** A token's text on one line, never empty. */
export function printed(text) {
  const shown = text.replaceAll("\n", "↵").replaceAll("\t", "→").replaceAll("\r", "");
  return shown.trim() || (shown ? "␣" : "∅");
}

/** What stands for a token where it is named: its text, else its id, else its position. */
export function named(token) {
  if (token.text !== null) return `“${printed(token.text)}”`;
  const id = token.fact("token_id");
  return id !== null && id >= 0 ? `#${id}` : `position ${token.position}`;
}

export function bytes(value) {
  for (const [size, name] of [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) if (value >= size) return `${Number((value / size).toPrecision(3))} ${name}`;
  return `${Math.round(value)} B`;
}

export const short = (id) => id.length <= 10 ? id : "…" + id.slice(-8);

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return null;
  return seconds < 1 ? `${figure(1000 * seconds, 3)} ms` : `${figure(seconds, 3)} s`;
}

/** How often: "1 token in 2". */
export function rate(count, of) {
  if (!of) return "";
  if (count === of) return "every token";
  if (!count) return "not captured";
  const every = of / count;
  return every >= 1.75 ? `1 token in ${Math.round(every)}` : `${Math.round(100 / every)} % of the tokens`;
}

/** A tag with properties and children. */
export function tag(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") made.className = value;
    else if (key === "style") made.style.cssText = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}
