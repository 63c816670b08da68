// A program as a snapshot of node that has loaded it and compiled all of its functions: docs/design/0053.
// Used by build.mjs; all that knows node's file format.
import { execFileSync } from 'node:child_process';
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';

/** `workFile`: beginning of the names of files that are of no use afterwards. */
export function buildSnapshot({ node, bundle, snapshot, workFile }) {
  const builder = `${workFile}.builder.cjs`;
  const config = `${workFile}.snapshot.json`;
  writeFileSync(builder, builderSource(bundle));
  writeFileSync(config, JSON.stringify({ builder }));
  execFileSync(
    node,
    [
      // As the launcher starts it.
      '--no-rehash-snapshot',
      // Of node's own modules, which it has "not fully verified" in snapshots: our tests run on them.
      '--no-warnings',
      // V8 throws code away that has not run for a while, and so before it writes a snapshot.
      '--no-flush-bytecode',
      '--snapshot-blob',
      `${snapshot}.new`,
      '--build-snapshot-config',
      config,
    ],
    { stdio: ['ignore', 'pipe', 'pipe'] },
  );
  writeFileSync(`${snapshot}.new`, withoutCodeCache(readFileSync(`${snapshot}.new`)));
  for (const file of [builder, config]) rmSync(file);
  renameSync(`${snapshot}.new`, snapshot);
}

/** Every function of the bundle is compiled, not only those that run while it is loaded. */
function builderSource(bundle) {
  const file = JSON.stringify(bundle);
  return `
const { setFlagsFromString } = require('node:v8');
const { Script } = require('node:vm');
const source = require('node:fs').readFileSync(${file}, 'utf8');
setFlagsFromString('--no-lazy');
const script = new Script('(function (require, module, exports) {' + source + '\\n})', { filename: ${file} });
setFlagsFromString('--lazy');
const module_ = { exports: {} };
script.runInThisContext()(require, module_, module_.exports);
`;
}

/**
 * Node keeps functions compiled only in snapshots to which it adds a code cache of all its own modules: 4 MB that each
 * start would read and copy, and nobody asks for. It is the end of the file: how many, and of each a name and bytes.
 *
 *     magic 4 │ type 1 │ version, architecture, platform │ flags 4 │ heap │ indices │ code cache
 *
 * Lengths are 8 bytes and stand before what they count; the heap's has 4.
 */
export function withoutCodeCache(bytes) {
  const afterString = (at) => at + 8 + length(bytes, at);
  const flags = afterString(afterString(afterString(4 + 1)));
  const afterHeap = flags + 4 + 4 + bytes.readUInt32LE(flags + 4);
  // What lies between differs from version to version of node: a list that ends exactly where the file does is no accident.
  const starts = [];
  for (let at = afterHeap; at + 8 <= bytes.length && at < afterHeap + kMaximalIndices; at += 1) {
    if (isCodeCache(bytes, at)) starts.push(at);
  }
  if (starts.length !== 1) throw new Error('the snapshot is not in the format that hack/snapshot.mjs knows');
  const stripped = Buffer.concat([bytes.subarray(0, starts[0]), Buffer.alloc(8)]);
  // As node says it of snapshots that it makes without one.
  stripped.writeUInt32LE(stripped.readUInt32LE(flags) | kWithoutCodeCache, flags);
  return stripped;
}

const kWithoutCodeCache = 1;
const kMaximalIndices = 1 << 20;
const kMaximalModules = 4096;
const kMaximalName = 256;

function isCodeCache(bytes, start) {
  const count = length(bytes, start);
  if (count === 0 || count > kMaximalModules) return false;
  let at = start + 8;
  for (let left = count; left > 0; left -= 1) {
    const name = length(bytes, at);
    if (name === 0 || name > kMaximalName) return false;
    at += 8 + name;
    at += 8 + length(bytes, at);
    if (at > bytes.length) return false;
  }
  return at === bytes.length;
}

/** Too large a number for what lies beyond the end. */
function length(bytes, at) {
  return at + 8 <= bytes.length ? Number(bytes.readBigUInt64LE(at)) : Number.MAX_SAFE_INTEGER;
}
