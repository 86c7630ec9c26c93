// The websocket: opens it again when it ends, and knows how late the server's clock is against ours.
import { unpack } from "./wire.js";

const RETRY_MS = [500, 1000, 2000, 4000];
const WINDOW_S = 20;

export class Connection {
  /** `heard(header, arrays)` gets every message, `changed(connected)` what became of the connection. */
  constructor(url, heard, changed) {
    this.url = url;
    this.heard = heard;
    this.changed = changed;
    this.bytes = 0;
    this.lags = [];
    this.offset = null;
    this.tries = 0;
  }

  open() {
    const socket = new WebSocket(this.url);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    socket.onopen = () => { this.tries = 0; this.lags = []; this.changed(true); };
    socket.onmessage = (event) => this.take(event.data);
    socket.onclose = () => {
      this.changed(false);
      const wait = RETRY_MS[Math.min(this.tries++, RETRY_MS.length - 1)];
      setTimeout(() => this.open(), wait);
    };
    return this;
  }

  take(data) {
    this.bytes += data.byteLength;
    const { header, arrays } = unpack(data);
    if (header.sent_s !== undefined && header.live !== false) this.learn(header.sent_s);
    this.heard(header, arrays, data.byteLength);
  }

  /** The smallest lag of the last seconds is the path and the difference of the clocks. */
  learn(sent) {
    const here = performance.now() / 1000;
    this.lags.push([here, here - sent]);
    while (this.lags[0][0] < here - WINDOW_S) this.lags.shift();
    this.offset = Math.min(...this.lags.map(([, lag]) => lag));
  }

  /** The server's clock now, in seconds of UNIX time. */
  now() {
    return this.offset === null ? Date.now() / 1000 : performance.now() / 1000 - this.offset;
  }
}
