// What e2e/daemons needs: containerd, docker and their runc as Debian sid has
// them, in build/managers/sid-daemons beside the system, and a copy of stasis at
// a place of its own. Exit status 1: something could not be had; its tests say
// so and are skipped.
import { join } from 'node:path';
import { daemonDirectory } from '../e2e/support/daemon.js';
import { buildDirectory, managersDirectory } from '../e2e/support/paths.js';
import { mustRun } from '../e2e/support/run.js';
import { installFromSid, isInstalled, markComplete, type SidFolder } from './sid.js';

const programs = ['usr/bin/containerd', 'usr/bin/ctr', 'usr/sbin/dockerd', 'usr/bin/docker', 'usr/sbin/runc'];

const folder: SidFolder = {
  directory: daemonDirectory,
  packages: ['containerd', 'docker.io', 'docker-cli', 'runc'],
  programs: [...programs, 'usr/bin/containerd-shim-runc-v2'],
};

async function main(): Promise<void> {
  const node = join(buildDirectory, 'lib/stasis/node');
  await mustRun(node, [join(buildDirectory, 'ts/hack/install.js'), '--prefix', join(managersDirectory, 'stasis')]);
  if (!isInstalled(folder)) {
    console.log(`unpacking Debian sid's ${folder.packages.join(', ')}`);
    await installFromSid(folder);
  }
  for (const name of programs) {
    const { stdout } = await mustRun(join(daemonDirectory, name), ['--version']);
    console.log(stdout.split('\n')[0]);
  }
  markComplete(folder);
}

try {
  await main();
} catch (error) {
  console.error(`cannot install containerd and docker: ${(error as Error).message}`);
  process.exitCode = 1;
}
