// The programs that we are compared with: Debian sid's CRIU, runc, crun,
// crit and checkpointctl, unpacked into build/peers with all their libraries, so that
// the system's own packages stay as they are. Does nothing if they are there.
// Exit status 1: they could not be had (no network, or sid has moved on).
import { existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { cacheDirectory, peerDirectory } from '../e2e/support/paths.js';
import { peers } from '../e2e/support/peers.js';
import { downloadPackages, unpackPackages } from '../e2e/support/rootfs.js';
import { mustRun } from '../e2e/support/run.js';

const packages = ['criu', 'runc', 'crun', 'python3-pycriu', 'checkpointctl'];
const mirror = process.env['STASIS_DEBIAN_MIRROR'] ?? 'http://deb.debian.org/debian';
/** Programs that run on their own: they get the loader and libraries beside them. */
const programs = ['usr/sbin/criu', 'usr/sbin/runc', 'usr/bin/crun', 'usr/bin/checkpointctl'];

async function main(): Promise<void> {
  const complete = join(peerDirectory, 'complete');
  if (!existsSync(complete)) {
    console.log('installing the peers: criu, runc, crun, crit and checkpointctl of Debian sid');
    await install();
  }
  for (const [name, version] of Object.entries(await versions())) console.log(`${name.padEnd(14)} ${version}`);
  writeFileSync(complete, '');
}

async function install(): Promise<void> {
  rmSync(peerDirectory, { recursive: true, force: true });
  mkdirSync(peerDirectory, { recursive: true });
  const downloads = join(cacheDirectory, 'sid-packages');
  const lists = join(cacheDirectory, 'sid-lists');
  mkdirSync(join(lists, 'partial'), { recursive: true });
  const sources = join(cacheDirectory, 'sid.list');
  // The signature is checked with the keys that this Debian has.
  writeFileSync(sources, `deb ${mirror} sid main\n`);
  const options = [
    '-o',
    `Dir::Etc::sourcelist=${sources}`,
    '-o',
    'Dir::Etc::sourceparts=/dev/null',
    '-o',
    `Dir::State::lists=${lists}`,
  ];
  await mustRun(
    'apt-get',
    [...options, '-o', `Dir::Cache=${cacheDirectory}`, '-o', 'APT::Sandbox::User=root', 'update'],
    { timeoutMs: 300_000 },
  );
  await downloadPackages(packages, downloads, [...options, '-o', `Dir::Cache=${cacheDirectory}`]);
  for (const name of ['bin', 'sbin', 'lib', 'lib64']) {
    mkdirSync(join(peerDirectory, 'usr', name), { recursive: true });
    await mustRun('ln', ['-s', `usr/${name}`, join(peerDirectory, name)]);
  }
  await unpackPackages(downloads, peerDirectory);
  const libraries = join(peerDirectory, 'usr/lib/x86_64-linux-gnu');
  const loader = readdirSync(libraries).find((name) => name.startsWith('ld-linux-x86-64')) ?? 'ld-linux-x86-64.so.2';
  for (const program of programs.map((name) => join(peerDirectory, name))) {
    await mustRun('patchelf', ['--set-interpreter', join(libraries, loader), program]);
    await mustRun('patchelf', ['--force-rpath', '--set-rpath', libraries, program]);
  }
}

async function versions(): Promise<Record<string, string>> {
  const firstLine = (text: string): string => text.split('\n')[0] ?? '';
  const crit = peers.crit(['--version']);
  // checkpointctl does not tell its version: that it starts is what can be known.
  await mustRun(peers.checkpointctl, ['--help']);
  return {
    criu: firstLine((await mustRun(peers.criu, ['--version'])).stdout),
    runc: firstLine((await mustRun(peers.runc, ['--version'])).stdout),
    crun: firstLine((await mustRun(peers.crun, ['--version'])).stdout),
    crit: firstLine((await mustRun(crit.program, crit.args, { env: crit.env })).stdout),
    checkpointctl: 'starts',
  };
}

try {
  await main();
} catch (error) {
  console.error(`cannot install the peers: ${(error as Error).message}`);
  process.exitCode = 1;
}
