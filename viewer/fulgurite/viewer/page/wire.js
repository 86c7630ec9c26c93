// Reads the messages of `message.py`: a header in JSON, arrays of numbers behind it, read in place.

const READERS = {
  u1: Uint8Array, i1: Int8Array, u2: Uint16Array, i2: Int16Array, u4: Uint32Array, i4: Int32Array,
  f4: Float32Array, f8: Float64Array,
};

const HALF = new Float32Array(65536);
for (let bits = 0; bits < 65536; bits++) {
  const exponent = (bits >> 10) & 31, fraction = bits & 1023, sign = bits & 0x8000 ? -1 : 1;
  HALF[bits] = sign * (exponent === 0 ? fraction * 2 ** -24
    : exponent === 31 ? (fraction ? NaN : Infinity)
      : (1 + fraction / 1024) * 2 ** (exponent - 15));
}

/** Half floats, as Float32Array. */
function halves(bits) {
  const values = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) values[i] = HALF[bits[i]];
  return values;
}

/** Half floats that stay as they came until somebody looks: most columns of most tokens are never looked at. */
class Halves {
  constructor(bits) { this.bits = bits; this.length = bits.length; }
  at(index) { return HALF[this.bits[index]]; }
  subarray(from, to) { return halves(this.bits.subarray(from, to)); }
}

const read = (name, bits) => (name.startsWith("c:") ? new Halves(bits) : halves(bits));

/** Header and arrays ({data, shape}) of a message; columns of half floats can be asked for `at` and `subarray` only. */
export function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const arrays = {};
  for (const [name, dtype, shape, offset] of header.arrays) {
    const count = shape.reduce((a, b) => a * b, 1);
    const at = 4 + length + offset;
    arrays[name] = { data: dtype === "f2" ? read(name, new Uint16Array(buffer, at, count)) : new READERS[dtype](buffer, at, count), shape };
  }
  return { header, arrays };
}
