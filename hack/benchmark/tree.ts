// Measures one workload on bare process trees. A program of its own: it runs in
// a pid namespace whose first process reaps, so that restored trees find their
// pids free. Arguments: a JSON request; prints a JSON result as its last line.
import { spawn } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { buildDirectory, targetDirectory } from '../../e2e/support/paths.js';
import { peers } from '../../e2e/support/peers.js';
import { describeFailure, run } from '../../e2e/support/run.js';
import { waitFor } from '../../e2e/support/wait.js';
import { measurePairs, type TreeRequest } from './pairs.js';
import { untilReady, type Subject, type Tool } from './measure.js';
import { StateFile } from './state-file.js';
import type { Workload } from './workloads.js';

const stasisCriu = join(buildDirectory, 'bin', 'stasis-criu');
const kCache = '/run/criu.kdat';

async function main(request: TreeRequest): Promise<void> {
  const { workload, directory } = request;
  const results = await measurePairs(request, () => startTree(workload, join(directory, 'load')));
  process.stdout.write(`\n${JSON.stringify(results)}\n`);
}

async function startTree(workload: Workload, directory: string): Promise<Subject> {
  rmSync(directory, { recursive: true, force: true });
  mkdirSync(directory, { recursive: true });
  const state = new StateFile(join(directory, 'state'));
  const output = openSync(join(directory, 'output'), 'a+');
  const load = workload.load.map((word) => (word === '{dir}' ? directory : word));
  // A session of its own, as a daemon has; nothing of the terminal.
  const child = spawn(join(targetDirectory, 'bench_load'), [state.path, ...load], {
    detached: true,
    stdio: [output, output, output],
    cwd: directory,
    env: {},
  });
  closeSync(output);
  const pid = child.pid ?? 0;
  await untilReady(state);
  const call = async (
    tool: Tool,
    action: 'dump' | 'restore',
    images: string,
    work: string,
    more: readonly string[],
  ) => {
    if (tool === 'criu without its cache') rmSync(kCache, { force: true });
    const args = [action, '--images-dir', images, '--work-dir', work, ...more];
    const quiet = tool === 'stasis' ? [] : ['-v1', '-o', `${action}.log`];
    const result = await run(tool === 'stasis' ? stasisCriu : peers.criu, [...args, ...quiet], {
      timeoutMs: workload.timeoutMs ?? 120_000,
      env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' },
    });
    if (result.exitCode !== 0) throw new Error(describeFailure(result) + reasonIn(join(work, `${action}.log`)));
    return result.elapsedMs;
  };
  return {
    state,
    checkpoint: async (tool, images, work, live, flags) =>
      await call(tool, 'dump', images, work, ['--tree', String(pid), ...(live ? ['--leave-running'] : []), ...flags]),
    restore: async (tool, images, work, flags) =>
      await call(tool, 'restore', images, work, ['--restore-detached', ...flags]),
    destroy: async () => {
      try {
        process.kill(-pid, 'SIGKILL');
      } catch {
        // It has gone.
      }
      await waitFor('the tree to go', () => (groupExists(pid) ? undefined : true), { timeoutMs: 30_000 });
    },
  };
}

/** Of CRIU, which says it in its log only. */
function reasonIn(log: string): string {
  const lines = existsSync(log) ? readFileSync(log, 'utf8').split('\n') : [];
  const reason = lines.find((line) => line.includes('Error'));
  return reason === undefined ? '' : `: ${reason.trim()}`;
}

function groupExists(group: number): boolean {
  try {
    process.kill(-group, 0);
    return true;
  } catch {
    return false;
  }
}

await main(JSON.parse(process.argv[2] ?? '{}') as TreeRequest);
