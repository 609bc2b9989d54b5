// Holds a softmax in double precision to the golden vectors of an exported folder: node check.mjs FOLDER
import { readFileSync } from "node:fs";

const folder = process.argv[2];
const index = JSON.parse(readFileSync(`${folder}/index.json`));
const method = index.methods.find((entry) => entry.method === "softmax/two_pass");
const bytes = readFileSync(`${folder}/${method.data}`);
const data = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
const types = { float32: Float32Array, float64: Float64Array };

function array({ dtype, shape, offset }) {
  return new types[dtype](data, offset, shape.reduce((product, size) => product * size, 1));
}

function softmax(x, row) {
  const y = new Float64Array(x.length);
  for (let start = 0; start < x.length; start += row) {
    const part = x.subarray(start, start + row);
    const largest = Math.max(...part);
    const terms = Array.from(part, (value) => Math.exp(value - largest));
    const sum = terms.reduce((total, term) => total + term, 0);
    y.set(terms.map((term) => term / sum), start);
  }
  return y;
}

const { cases } = JSON.parse(readFileSync(`${folder}/${method.file}`));
for (const { function: name, args, options, kind, expected, name: title } of cases) {
  if (name !== "softmax.softmax" || kind !== "value" || Object.keys(options).length) continue;
  if (args[0].dtype !== "float64") continue;
  const y = softmax(array(args[0]), args[0].shape.at(-1));
  const errors = Array.from(array(expected), (truth, i) =>
    Object.is(truth, y[i]) ? 0 : Math.abs(y[i] - truth) / Math.abs(truth));
  console.log(`${title}: relative error ${Math.max(0, ...errors).toPrecision(2)}`);
}
