// The programs that we are compared with: Debian sid's CRIU, runc, crun,
// crit and checkpointctl, unpacked into build/peers with all their libraries, so that
// the system's own packages stay as they are. Does nothing if they are there.
// Exit status 1: they could not be had (no network, or sid has moved on).
import { peerDirectory } from '../e2e/support/paths.js';
import { peers } from '../e2e/support/peers.js';
import { mustRun } from '../e2e/support/run.js';
import { installFromSid, isInstalled, markComplete, type SidFolder } from './sid.js';

const folder: SidFolder = {
  directory: peerDirectory,
  packages: ['criu', 'libcriu2', 'runc', 'crun', 'python3-pycriu', 'checkpointctl'],
  programs: ['usr/sbin/criu', 'usr/sbin/runc', 'usr/bin/crun', 'usr/bin/checkpointctl'],
};

async function main(): Promise<void> {
  if (!isInstalled(folder)) {
    console.log('installing the peers: criu, runc, crun, crit and checkpointctl of Debian sid');
    await installFromSid(folder);
  }
  for (const [name, version] of Object.entries(await versions())) console.log(`${name.padEnd(14)} ${version}`);
  markComplete(folder);
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
