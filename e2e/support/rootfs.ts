// Root file systems for test containers. No registry is needed: one is
// busybox-static with its links, the others are made of Debian packages that apt
// downloads and tar unpacks (they are not installed here). Each is made once,
// in build/cache, and hard-linked into each test's bundle.
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createHash } from 'node:crypto';
import { dirname, join } from 'node:path';
import { cacheDirectory, targetDirectory } from './paths.js';
import { mustRun } from './run.js';

export type RootfsKind = 'busybox' | 'debian' | 'postgres';

/** Packages of root file systems; everything they depend on comes along. */
const packagesOf: Readonly<Record<Exclude<RootfsKind, 'busybox'>, readonly string[]>> = {
  debian: ['python3', 'redis-server', 'coreutils', 'dash'],
  postgres: ['postgresql-15', 'coreutils', 'dash'],
};

/** A writable copy of a root file system at `destination`, with the named self-checking targets in /targets. */
export async function makeRootfs(
  kind: RootfsKind,
  destination: string,
  targets: readonly string[] = [],
): Promise<void> {
  const master = kind === 'busybox' ? await busyboxMaster() : await debianMaster(packagesOf[kind]);
  mkdirSync(dirname(destination), { recursive: true });
  // Hard links: programs under test make new files, they do not write into the installed ones.
  await mustRun('cp', ['-al', master, destination]);
  mkdirSync(join(destination, 'targets'), { recursive: true });
  for (const target of targets) copyFileSync(join(targetDirectory, target), join(destination, 'targets', target));
}

async function busyboxMaster(): Promise<string> {
  const master = join(cacheDirectory, 'rootfs-busybox-2');
  if (existsSync(master)) return master;
  return await make(master, async (directory) => {
    makeSkeleton(directory, ['bin']);
    const program = join(directory, 'bin', 'busybox');
    copyFileSync('/bin/busybox', program);
    const { stdout } = await mustRun(program, ['--list']);
    for (const applet of stdout.split('\n').filter((name) => name !== '' && name !== 'busybox')) {
      symlinkSync('busybox', join(directory, 'bin', applet));
    }
    symlinkSync('bin', join(directory, 'sbin'));
  });
}

async function debianMaster(packages: readonly string[]): Promise<string> {
  const master = join(cacheDirectory, `rootfs-debian-${contentName(packages)}`);
  if (existsSync(master)) return master;
  const downloads = join(cacheDirectory, `packages-${contentName(packages)}`);
  await downloadPackages(packages, downloads, []);
  return await make(master, async (directory) => {
    makeSkeleton(directory, ['usr/bin', 'usr/sbin', 'usr/lib', 'usr/lib64']);
    for (const name of ['bin', 'sbin', 'lib', 'lib64']) symlinkSync(`usr/${name}`, join(directory, name));
    await unpackPackages(downloads, directory);
    // What the packages' install scripts would have made.
    if (!existsSync(join(directory, 'usr/bin/sh'))) symlinkSync('dash', join(directory, 'usr/bin/sh'));
    await mustRun('ldconfig', ['-r', directory]);
  });
}

/**
 * Downloads packages with all that they depend on, as if nothing were
 * installed here. `aptOptions` can name other sources.
 */
export async function downloadPackages(
  packages: readonly string[],
  directory: string,
  aptOptions: readonly string[],
): Promise<void> {
  mkdirSync(join(directory, 'partial'), { recursive: true });
  const arguments_ = [
    ...['-o', 'Dir::State::status=/dev/null', '-o', `Dir::Cache::archives=${directory}`],
    // apt drops to the user _apt for downloads, who cannot write in here.
    ...['-o', 'APT::Sandbox::User=root', ...aptOptions],
  ];
  await mustRun(
    'apt-get',
    [...arguments_, 'install', '-y', '--no-install-recommends', '--download-only', ...packages],
    { timeoutMs: 600_000 },
  );
}

/** Unpacks every downloaded package into one folder; links such as lib -> usr/lib are kept. */
export async function unpackPackages(downloads: string, directory: string): Promise<void> {
  for (const name of readdirSync(downloads).filter((file) => file.endsWith('.deb'))) {
    await mustRun('sh', [
      '-c',
      'dpkg-deb --fsys-tarfile "$1" | tar -x --keep-directory-symlink -C "$2"',
      'unpack',
      join(downloads, name),
      directory,
    ]);
  }
}

function makeSkeleton(directory: string, extra: readonly string[]): void {
  for (const name of ['proc', 'sys', 'dev', 'tmp', 'etc', 'root', 'run', 'var', 'data', ...extra]) {
    mkdirSync(join(directory, name), { recursive: true });
  }
  chmodSync(join(directory, 'tmp'), 0o1777);
  writeFileSync(join(directory, 'etc', 'passwd'), 'root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n');
  writeFileSync(join(directory, 'etc', 'group'), 'root:x:0:\nuser:x:1000:\n');
}

/** A short name that changes with the list, so that an old folder is not taken for a new one. */
function contentName(list: readonly string[]): string {
  return createHash('sha256').update(list.join(' ')).digest('hex').slice(0, 8);
}

/** Makes a folder completely or not at all. */
async function make(final: string, fill: (directory: string) => Promise<void>): Promise<string> {
  const temporary = `${final}.${process.pid}`;
  rmSync(temporary, { recursive: true, force: true });
  mkdirSync(temporary, { recursive: true });
  await fill(temporary);
  renameSync(temporary, final);
  return final;
}
