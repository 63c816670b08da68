// Copies the built runtime to PREFIX/bin and PREFIX/lib/stasis. The copy finds
// everything relative to its own path: it needs no environment, no working
// directory and nothing of this repository. Files are replaced by rename.
import {
  chmodSync,
  copyFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { execFileSync, spawnSync } from 'node:child_process';
import { installManual } from './manual.js';

/**
 * Names that others look for. Managers decide by the runtime's name whether it
 * gets a JSON log and which archives are its own, so there are copies of the
 * name under a directory where no search path finds them.
 */
const links: readonly (readonly [name: string, target: string])[] = [
  ['bin/criu', 'stasis-criu'],
  ['lib/stasis/runtimes/runc', '../../../bin/stasis'],
  ['lib/stasis/runtimes/crun', '../../../bin/stasis'],
];

const build = fileURLToPath(new URL('../..', import.meta.url));

function main(args: readonly string[]): void {
  const prefix = parsePrefix(args);
  for (const folder of ['bin', 'lib/stasis']) {
    mkdirSync(join(prefix, folder), { recursive: true, mode: 0o755 });
    for (const name of readdirSync(join(build, folder))) {
      const from = join(build, folder, name);
      if (lstatSync(from).isFile() && !/\.(new|image)$/.test(name)) copy(from, join(prefix, folder, name));
    }
  }
  mkdirSync(join(prefix, 'lib/stasis/runtimes'), { recursive: true, mode: 0o755 });
  for (const [name, target] of links) link(target, join(prefix, name));
  // What older versions have left.
  for (const name of ['compile-cache', 'stasis.mjs', 'stasis-main.mjs', 'criu.mjs', 'criu-main.mjs'])
    rmSync(join(prefix, 'lib/stasis', name), { recursive: true, force: true });
  const stasis = join(prefix, 'bin/stasis');
  makeImages(stasis);
  console.log(execFileSync(stasis, ['--version'], { env: {}, cwd: '/', encoding: 'utf8' }).trimEnd());
  console.log(`installed ${installHook(prefix)}`);
  for (const path of installManual(prefix)) console.log(`installed ${path}`);
  console.log(`installed ${stasis}`);
}

/** What the programs start from: it holds for these files, this kernel and this processor (docs/design/0072). */
function makeImages(stasis: string): void {
  const { status, stderr } = spawnSync(stasis, ['setup'], { env: {}, cwd: '/', encoding: 'utf8' });
  if (status !== 0) console.error(`${stderr.trim()}: stasis starts without it, more slowly`);
}

/** For podman and CRI-O, in the form of /etc/containers/oci/hooks.d: containers with the annotation get the hook. */
function installHook(prefix: string): string {
  const directory = join(prefix, 'share/containers/oci/hooks.d');
  mkdirSync(directory, { recursive: true, mode: 0o755 });
  const path = join(directory, 'stasis.json');
  const hook = {
    version: '1.0.0',
    hook: { path: join(prefix, 'bin/stasis'), args: ['stasis', 'hook'] },
    when: { annotations: { '^org\\.stasis\\.checkpoint-when$': '.+' } },
    stages: ['poststart'],
  };
  writeFileSync(path, `${JSON.stringify(hook, undefined, 2)}\n`, { mode: 0o644 });
  return path;
}

function parsePrefix(args: readonly string[]): string {
  const [flag, value, ...rest] = args.flatMap((word) =>
    word.startsWith('--prefix=') ? word.split(/=(.*)/s, 2) : [word],
  );
  if (flag === undefined) return '/usr/local';
  if (flag !== '--prefix' || value === undefined || value === '' || rest.length > 0) {
    console.error('cannot install: unknown arguments; usage: hack/install [--prefix DIR]');
    process.exit(2);
  }
  return resolve(value);
}

function link(target: string, path: string): void {
  const temporary = `${path}.new`;
  rmSync(temporary, { force: true });
  symlinkSync(target, temporary);
  renameSync(temporary, path);
}

function copy(from: string, to: string): void {
  const temporary = `${to}.new`;
  if (existsSync(temporary)) rmSync(temporary);
  copyFileSync(from, temporary);
  chmodSync(temporary, statSync(from).mode & 0o777);
  renameSync(temporary, to);
}

main(process.argv.slice(2));
