// Programs of Debian sid in a folder of their own, with all their libraries,
// so that the system's own packages stay as they are.
import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { cacheDirectory } from '../e2e/support/paths.js';
import { downloadPackages, unpackPackages } from '../e2e/support/rootfs.js';
import { mustRun } from '../e2e/support/run.js';

const mirror = process.env['STASIS_DEBIAN_MIRROR'] ?? 'http://deb.debian.org/debian';

export interface SidFolder {
  readonly directory: string;
  /** What they depend on comes along. */
  readonly packages: readonly string[];
  /** Programs that run on their own: they get the loader and libraries beside them. */
  readonly programs: readonly string[];
}

/** Not if it was made of another list, or not to its end. */
export function isInstalled(folder: SidFolder): boolean {
  return readOr(markOf(folder)) === listOf(folder);
}

/** Throws if something cannot be had: no network, or sid has moved on. */
export async function installFromSid(folder: SidFolder): Promise<void> {
  const { directory } = folder;
  rmSync(directory, { recursive: true, force: true });
  mkdirSync(directory, { recursive: true });
  const downloads = join(cacheDirectory, `sid-packages-${folder.packages.join('-')}`);
  const lists = join(cacheDirectory, 'sid-lists');
  mkdirSync(join(lists, 'partial'), { recursive: true });
  const sources = join(cacheDirectory, 'sid.list');
  // The signature is checked with the keys that this Debian has.
  writeFileSync(sources, `deb ${mirror} sid main\n`);
  const options = [
    ...['-o', `Dir::Etc::sourcelist=${sources}`, '-o', 'Dir::Etc::sourceparts=/dev/null'],
    ...['-o', `Dir::State::lists=${lists}`, '-o', `Dir::Cache=${cacheDirectory}`],
  ];
  await mustRun('apt-get', [...options, '-o', 'APT::Sandbox::User=root', 'update'], { timeoutMs: 300_000 });
  await downloadPackages(folder.packages, downloads, options);
  for (const name of ['bin', 'sbin', 'lib', 'lib64']) {
    mkdirSync(join(directory, 'usr', name), { recursive: true });
    await mustRun('ln', ['-s', `usr/${name}`, join(directory, name)]);
  }
  await unpackPackages(downloads, directory);
  const libraries = join(directory, 'usr/lib/x86_64-linux-gnu');
  const loader = readdirSync(libraries).find((name) => name.startsWith('ld-linux-x86-64')) ?? 'ld-linux-x86-64.so.2';
  for (const program of folder.programs.map((name) => join(directory, name))) {
    await mustRun('patchelf', ['--set-interpreter', join(libraries, loader), program]);
    await mustRun('patchelf', ['--force-rpath', '--set-rpath', libraries, program]);
  }
}

/** Everything that was promised has been seen to start. */
export function markComplete(folder: SidFolder): void {
  writeFileSync(markOf(folder), listOf(folder));
}

function listOf(folder: SidFolder): string {
  return [...folder.packages, ...folder.programs].join('\n');
}

function readOr(path: string): string {
  return existsSync(path) ? readFileSync(path, 'utf8') : '';
}

function markOf({ directory }: SidFolder): string {
  return join(directory, 'complete');
}
