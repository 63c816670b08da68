// What e2e/managers needs: the managers themselves, as Debian has them and as
// Debian sid has them (in build/managers/sid, beside the system), and a copy of
// stasis at a place of its own, as hack/install makes it. Exit status
// 1: a manager could not be had; its tests say so and are skipped.
import { join } from 'node:path';
import { buildDirectory, managersDirectory } from '../e2e/support/paths.js';
import { sidDirectory } from '../e2e/support/podman-sets.js';
import { mustRun, run } from '../e2e/support/run.js';
import { installFromSid, isInstalled as isInstalledFromSid, markComplete, type SidFolder } from './sid.js';

const packages = ['podman', 'conmon', 'containernetworking-plugins', 'iproute2', 'iptables'];

const sid: SidFolder = {
  directory: sidDirectory,
  packages: ['podman', 'conmon', 'netavark', 'aardvark-dns', 'runc', 'crun'],
  programs: [
    ...['usr/bin/podman', 'usr/bin/conmon', 'usr/sbin/runc', 'usr/bin/crun'],
    ...['usr/lib/podman/netavark', 'usr/lib/podman/aardvark-dns', 'usr/libexec/podman/rootlessport'],
  ],
};
const sidCommands = ['usr/bin/podman', 'usr/sbin/runc', 'usr/bin/crun', 'usr/bin/conmon'];

async function main(): Promise<void> {
  const node = join(buildDirectory, 'lib/stasis/node');
  await mustRun(node, [join(buildDirectory, 'ts/hack/install.js'), '--prefix', join(managersDirectory, 'stasis')]);
  // One of them has to be enough for the tests of that one, and hack/bench wants no other than sid's.
  if (!process.argv.includes('--only-sid')) await attempt("Debian's", fromDebian);
  await attempt("Debian sid's", fromSid);
}

async function attempt(whose: string, install: () => Promise<void>): Promise<void> {
  try {
    await install();
  } catch (error) {
    console.error(`cannot install ${whose} managers: ${(error as Error).message}`);
    process.exitCode = 1;
  }
}

async function fromDebian(): Promise<void> {
  const missing: string[] = [];
  for (const name of packages) if (!(await isInstalled(name))) missing.push(name);
  if (missing.length > 0) {
    console.log(`installing Debian packages: ${missing.join(' ')}`);
    await mustRun('apt-get', ['install', '-y', '--no-install-recommends', ...missing], { timeoutMs: 600_000 });
  }
  await showVersions(['podman', 'runc', 'conmon']);
}

async function fromSid(): Promise<void> {
  if (!isInstalledFromSid(sid)) {
    console.log(`unpacking Debian sid's ${sid.packages.join(', ')}`);
    await installFromSid(sid);
  }
  await showVersions(sidCommands.map((name) => join(sidDirectory, name)));
  markComplete(sid);
}

async function showVersions(commands: readonly string[]): Promise<void> {
  for (const command of commands) {
    const { stdout } = await mustRun(command, ['--version']);
    console.log(stdout.split('\n')[0]);
  }
}

async function isInstalled(name: string): Promise<boolean> {
  return (await run('dpkg-query', ['-W', '-f', '${db:Status-Status}', name])).stdout === 'installed';
}

try {
  await main();
} catch (error) {
  console.error(`cannot install the managers: ${(error as Error).message}`);
  process.exitCode = 1;
}
