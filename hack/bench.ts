// Measures stasis next to CRIU and runc, in the same run, alternating. Prints
// a table with what is wanted and what was reached; every single value goes to
// build/bench/results.json, charts to build/bench/results.html.
//   hack/bench [--list] [--quick] [--pairs N] [--images tmpfs|disk|both] [WORKLOAD...]
import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, release, totalmem } from 'node:os';
import { join } from 'node:path';
import { buildDirectory, repository, stasisProgram, targetDirectory } from '../e2e/support/paths.js';
import { peers } from '../e2e/support/peers.js';
import { mustRun, run } from '../e2e/support/run.js';
import { measureContainers } from './benchmark/containers.js';
import { limitCells, limitRows, limitTitle, measureLimits, type Limits } from './benchmark/limits.js';
import { tools, type Tool } from './benchmark/measure.js';
import type { TreeRequest, WorkloadResult } from './benchmark/pairs.js';
import { measurePodman } from './benchmark/podman.js';
import { htmlPage, type Machine } from './benchmark/report-html.js';
import { curveRows, curvesOf, failuresOf, rowsOf, textRows, type Measured } from './benchmark/report.js';
import { renderTable } from './benchmark/table.js';
import { workloads, type Workload } from './benchmark/workloads.js';

const directory = join(buildDirectory, 'bench');
const kInside = 'STASIS_BENCH_INSIDE';
const kMaximalMinutes = 20; // of one workload

interface Options {
  readonly pairs: number;
  /** undefined: on tmpfs, and some on the disk as well. */
  readonly images: readonly ('tmpfs' | 'disk')[] | undefined;
  readonly chosen: readonly Workload[];
}

function parse(words: readonly string[]): Options {
  const queue = [...words];
  const names: string[] = [];
  let pairs = 5;
  let images: Options['images'];
  let quick = false;
  for (let word = queue.shift(); word !== undefined; word = queue.shift()) {
    if (word === '--quick') quick = true;
    else if (word === '--pairs') pairs = Number(queue.shift());
    else if (word === '--images') images = placesOf(queue.shift() ?? '');
    else if (word.startsWith('--')) throw new Error(`there is no option ${word}`);
    else names.push(word);
  }
  if (!Number.isInteger(pairs) || pairs < 1) throw new Error('--pairs wants a number of at least 1');
  if (quick) pairs = Math.min(pairs, 3);
  const chosen = workloads.filter(
    (workload) =>
      (!quick || workload.quick === true) &&
      (names.length === 0 || names.some((name) => workload.name.startsWith(name))),
  );
  if (chosen.length === 0) throw new Error('no workload has such a name; --list prints them');
  return { pairs, images: images ?? (quick ? ['tmpfs'] : undefined), chosen };
}

function placesOf(word: string): readonly ('tmpfs' | 'disk')[] {
  if (word === 'tmpfs' || word === 'disk') return [word];
  if (word === 'both') return ['tmpfs', 'disk'];
  throw new Error('--images wants tmpfs, disk or both');
}

const help = `hack/bench [options] [WORKLOAD...]

Measures stasis next to CRIU and runc, in one run, alternating. Prints tables; writes
build/bench/results.json and results.html. A workload may be named by its beginning.

  --list                     names of the workloads
  --quick                    some of them, three pairs each: three minutes, 4 GiB of memory
  --pairs N                  how often each is measured, after a warm-up (default: 5)
  --images tmpfs|disk|both   where images are (default: tmpfs, and for some the disk as well)`;

async function main(words: readonly string[]): Promise<void> {
  if (words.includes('--help') || words.includes('-h')) {
    console.log(help);
    return;
  }
  if (words.includes('--list')) {
    for (const { name, quick } of workloads) console.log(`${name}${quick === true ? '   (--quick)' : ''}`);
    return;
  }
  const options = parse(words);
  if (process.env[kInside] === undefined) {
    installPeers(options.chosen);
    return reenter(words);
  }
  const machine = await describeMachine(words);
  const all: (Measured & { limits: Limits })[] = [];
  for (const workload of options.chosen) {
    for (const images of options.images ?? (workload.onDisk === true ? ['tmpfs', 'disk'] : ['tmpfs'])) {
      const { result, limits } = await measure(workload, images, options.pairs);
      const measured = { workload, images, result, limits };
      all.push(measured);
      console.log(`\n${renderTable(textRows(measured))}`);
      const bounds = limitCells(limitRows(measured, limits));
      if (bounds.length > 0) console.log(`\n${renderTable([[limitTitle, '', ''], ...bounds])}`);
      for (const failure of failuresOf(measured)) console.log(failure);
      // Each time: a run of all takes an hour, and may be cut short.
      const results = all.map((one) => ({ ...one, rows: rowsOf(one) }));
      write('results.json', JSON.stringify({ machine, pairs: options.pairs, results }, undefined, 1));
      write('results.html', htmlPage(all, machine));
    }
  }
  for (const curve of curvesOf(all)) console.log(`\n${renderTable(curveRows(curve))}`);
  const goals = all.flatMap((measured) => rowsOf(measured).flatMap((row) => row.goals));
  const met = goals.filter((goal) => goal.met === true).length;
  console.log(
    `\n${met} of ${goals.length} goals met. Every value: ${join(directory, 'results.json')}; charts: results.html beside it`,
  );
}

function installPeers(chosen: readonly Workload[]): void {
  const installed = spawnSync(process.execPath, [join(buildDirectory, 'ts/hack/peers.js')], {
    cwd: repository,
    stdio: 'inherit',
  });
  if (installed.status !== 0) throw new Error('without the peers there is nothing to compare with');
  if (!chosen.some(({ kind }) => kind === 'podman')) return;
  process.env['STASIS_PODMAN'] ??= 'sid';
  // Where it cannot be had, its row says so.
  spawnSync(process.execPath, [join(buildDirectory, 'ts/hack/managers.js'), '--only-sid'], {
    cwd: repository,
    stdio: 'inherit',
  });
}

/** In mounts of our own: /run is a tmpfs there (CRIU keeps its probe cache on no other), and so is a folder for images. */
function reenter(words: readonly string[]): void {
  rmSync(directory, { recursive: true, force: true });
  mkdirSync(join(directory, 'tmpfs'), { recursive: true });
  mkdirSync(join(directory, 'disk'), { recursive: true });
  const script =
    'mount --make-rprivate / && mount -t tmpfs tmpfs /run && mount -t tmpfs -o size=90% tmpfs "$1" && shift && exec "$@"';
  const command = ['-c', script, 'sh', join(directory, 'tmpfs'), process.execPath, process.argv[1] ?? '', ...words];
  const { status } = spawnSync('unshare', ['-m', 'sh', ...command], {
    stdio: 'inherit',
    env: { ...process.env, [kInside]: '1' },
  });
  process.exitCode = status ?? 1;
}

async function measure(
  workload: Workload,
  images: 'tmpfs' | 'disk',
  pairs: number,
): Promise<{ result: WorkloadResult; limits: Limits }> {
  const used: Tool[] = tools.filter((tool) => tool !== 'criu without its cache' || workload.coldCriu === true);
  const place = join(directory, images, 'work');
  rmSync(place, { recursive: true, force: true });
  mkdirSync(place, { recursive: true });
  const request: TreeRequest = {
    workload,
    tools: used,
    pairs: Math.min(pairs, workload.maxPairs ?? pairs),
    directory: place,
  };
  const result = await withMappings(workload.mappings ?? 0, () => measureAs[workload.kind](request));
  rmSync(place, { recursive: true, force: true });
  mkdirSync(place);
  // Right after it: what the machine can do changes from one quarter of an hour to the next.
  const limits = images === 'tmpfs' ? await measureLimits(workload.name, request.pairs, place) : {};
  rmSync(place, { recursive: true, force: true });
  return { result, limits };
}

const measureAs = { container: measureContainers, tree: measureTrees, podman: measurePodman } as const;

/** vm.max_map_count belongs to the whole machine, so it is as it was before when this returns. */
async function withMappings<T>(count: number, work: () => Promise<T>): Promise<T> {
  const file = '/proc/sys/vm/max_map_count';
  const before = readFileSync(file, 'utf8').trim();
  if (count <= Number(before)) return await work();
  const putBack = (): void => writeFileSync(file, before);
  const onSignal = (): void => process.exit(1);
  process.once('exit', putBack);
  process.once('SIGINT', onSignal).once('SIGTERM', onSignal);
  try {
    writeFileSync(file, String(count));
    return await work();
  } finally {
    putBack();
    process.off('exit', putBack).off('SIGINT', onSignal).off('SIGTERM', onSignal);
  }
}

/** In a pid namespace of their own, so that a restored tree finds its pids free. */
async function measureTrees(request: TreeRequest): Promise<WorkloadResult> {
  const stage = [process.execPath, join(buildDirectory, 'ts/hack/benchmark/tree.js'), JSON.stringify(request)];
  const init = [join(targetDirectory, 'bench_load'), 'init', ...stage];
  const result = await run('unshare', ['-p', '-f', '--mount-proc', '--kill-child', ...init], {
    timeoutMs: kMaximalMinutes * 60_000,
  });
  const last = result.stdout.trimEnd().split('\n').at(-1) ?? '';
  if (result.exitCode === 0 && last.startsWith('{')) return JSON.parse(last) as WorkloadResult;
  const failure = `the measurement itself ended with status ${result.exitCode}: ${result.stderr.split('\n').slice(-3).join(' ')}`;
  return Object.fromEntries(request.tools.map((tool) => [tool, { samples: [], failure }]));
}

async function describeMachine(words: readonly string[]): Promise<Machine> {
  const firstLine = async (program: string): Promise<string> =>
    (await mustRun(program, ['--version'])).stdout.split('\n')[0] ?? '';
  return {
    kernel: release(),
    processor: cpus()[0]?.model ?? 'unknown',
    processors: cpus().length,
    memory: `${Math.round(totalmem() / 1024 ** 3)} GiB`,
    date: new Date().toISOString().slice(0, 10),
    command: ['hack/bench', ...words].join(' '),
    versions: {
      stasis: await firstLine(stasisProgram),
      criu: await firstLine(peers.criu),
      runc: await firstLine(peers.runc),
      node: process.version,
      cgroups: readFileSync('/proc/self/cgroup', 'utf8').trim().split('\n').length > 1 ? 'v1' : 'v2',
    },
  };
}

function write(name: string, text: string): void {
  writeFileSync(join(directory, name), text);
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  console.error(`cannot compare: ${(error as Error).message}`);
  process.exitCode = 1;
}
