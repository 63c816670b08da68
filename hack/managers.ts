// What e2e/managers needs: the managers themselves, as Debian has them, and a
// copy of stasis at a place of its own, as hack/install makes it. Exit status
// 1: a manager could not be had; its tests say so and are skipped.
import { join } from 'node:path';
import { buildDirectory, managersDirectory } from '../e2e/support/paths.js';
import { mustRun, run } from '../e2e/support/run.js';

const packages = ['podman', 'conmon', 'containernetworking-plugins', 'iproute2'];

async function main(): Promise<void> {
  const missing: string[] = [];
  for (const name of packages) if (!(await isInstalled(name))) missing.push(name);
  if (missing.length > 0) {
    console.log(`installing Debian packages: ${missing.join(' ')}`);
    await mustRun('apt-get', ['install', '-y', '--no-install-recommends', ...missing], { timeoutMs: 600_000 });
  }
  const node = join(buildDirectory, 'lib/stasis/node');
  await mustRun(node, [join(buildDirectory, 'ts/hack/install.js'), '--prefix', join(managersDirectory, 'stasis')]);
  for (const command of ['podman', 'runc', 'conmon']) {
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
