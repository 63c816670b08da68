// What the kernel can do at best, measured beside the rows that it bounds: by
// e2e/bench/limits.c, by starting node, and by nothing of ours.
import { mkdirSync, readFileSync, rmdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { buildDirectory, targetDirectory } from '../../e2e/support/paths.js';
import { mustRun } from '../../e2e/support/run.js';
import { rowsOf, type Measured } from './report.js';
import { spreadOf, type Spread } from './statistics.js';
import { milliseconds } from './table.js';
import type { Metric } from './workloads.js';

/** Milliseconds, by name. */
export type Limits = Readonly<Record<string, readonly number[]>>;

interface Bound {
  readonly metric: Metric;
  readonly limit: string;
}

interface Bounded {
  readonly bounds: readonly Bound[];
  /** One round. `directory` is where the images are. */
  readonly measure: (directory: string) => Promise<Readonly<Record<string, number>>>;
}

const node = join(buildDirectory, 'lib/stasis/node');
const threads = [1, 2] as const;

const kStart = 'a command of stasis that does nothing';

/** By the name of the workload. */
const bounded: Readonly<Record<string, Bounded>> = {
  'small process': {
    bounds: [
      { metric: 'checkpointMs', limit: kStart },
      { metric: 'restoreMs', limit: kStart },
    ],
    measure: async (directory) => ({ ...(await measureStarts(directory)), ...(await measureMove()) }),
  },
  '1 GiB, random': ofMemory(1024),
  '4 GiB, random': ofMemory(4096),
  '100 processes': {
    bounds: [{ metric: 'frozenMs', limit: '100 forks, one after the other' }],
    measure: async () => {
      const { stop, fork } = await ask('processes', '100');
      return { '100 processes stopped, read and let go': stop ?? NaN, '100 forks, one after the other': fork ?? NaN };
    },
  },
  '10,000 mappings': {
    bounds: [
      { metric: 'frozenMs', limit: 'fork of 10,000 mappings' },
      { metric: 'engineMs', limit: '10,000 filled pages told apart' },
    ],
    measure: async () => {
      const { fork, list, protect } = await ask('mappings', '10000');
      return {
        'fork of 10,000 mappings': fork ?? NaN,
        '/proc/PID/maps of 10,000 mappings': list ?? NaN,
        '10,000 filled pages told apart': protect ?? NaN,
      };
    },
  },
  '200 threads': {
    bounds: [{ metric: 'frozenMs', limit: '200 threads stopped, read and let go' }],
    measure: async () => ({ '200 threads stopped, read and let go': (await ask('threads', '200'))['stop'] ?? NaN }),
  },
  'idle container': {
    bounds: [
      { metric: 'checkpointMs', limit: kStart },
      { metric: 'restoreMs', limit: kStart },
    ],
    measure: measureStarts,
  },
};

function ofMemory(mebibytes: number): Bounded {
  const size = `${mebibytes / 1024} GiB`;
  return {
    bounds: [
      { metric: 'frozenMs', limit: `fork of ${size}, the first` },
      { metric: 'engineMs', limit: `${size} into memory, read, hashed, 2 threads` },
    ],
    measure: async (directory) => {
      const forks = await ask('fork', String(mebibytes));
      const copies: Record<string, number> = {};
      for (const count of threads) {
        for (const [kind, value] of Object.entries(await ask('copy', String(mebibytes), directory, String(count))))
          copies[`${size} into memory, ${kind}, ${count === 1 ? '1 thread' : `${count} threads`}`] = value;
      }
      return {
        [`fork of ${size}, the first`]: forks['first'] ?? NaN,
        [`fork of ${size}, a later one`]: forks['later'] ?? NaN,
        ...copies,
      };
    },
  };
}

async function ask(...words: readonly string[]): Promise<Record<string, number>> {
  const { stdout } = await mustRun(join(targetDirectory, 'bench_limits'), words, { timeoutMs: 300_000 });
  return JSON.parse(stdout) as Record<string, number>;
}

/** The least that a command takes, and what it would take to start node for it. */
async function measureStarts(directory: string): Promise<Record<string, number>> {
  const script = join(directory, 'empty.cjs');
  writeFileSync(script, '');
  // Without the caller's environment: NODE_EXTRA_CA_CERTS alone is 90 ms.
  const timed = async (program: string, word: string): Promise<number> => {
    await mustRun(program, [word], { env: {} }); // warms up
    return (await mustRun(program, [word], { env: {} })).elapsedMs;
  };
  const result = {
    [kStart]: await timed(join(buildDirectory, 'bin/stasis-criu'), '--version'),
    'node with an empty script': await timed(node, script),
  };
  rmSync(script);
  return result;
}

/** In the first hierarchy of cgroup v1 that we are in; nothing where there is none. */
async function measureMove(): Promise<Record<string, number>> {
  const own = ownHierarchy(readFileSync('/proc/self/cgroup', 'utf8'));
  if (own === undefined) return {};
  const places = ['from', 'to'].map((end) => join('/sys/fs/cgroup', own, `stasis-bench-${process.pid}-${end}`));
  try {
    for (const place of places) mkdirSync(place);
    const { move } = await ask('move', ...places);
    return { 'move of a task between cgroups of v1': move ?? NaN };
  } finally {
    for (const place of places) rmdirSync(place);
  }
}

/** Of /proc/PID/cgroup: "7:pids:/docker/x" is "pids/docker/x". */
export function ownHierarchy(text: string): string | undefined {
  for (const line of text.split('\n')) {
    const [, controllers, path] = /^\d+:([a-z_]+(?:,[a-z_]+)*):(\/.*)$/.exec(line) ?? [];
    // cpuset wants its files to be set first.
    if (controllers !== undefined && path !== undefined && controllers !== 'cpuset') return join(controllers, path);
  }
  return undefined;
}

/** As often as the workload was measured; nothing for a workload that has no limits. */
export async function measureLimits(workload: string, rounds: number, directory: string): Promise<Limits> {
  const limits: Record<string, number[]> = {};
  for (let round = 0; round < rounds; round++) {
    for (const [name, value] of Object.entries((await bounded[workload]?.measure(directory)) ?? {}))
      (limits[name] ??= []).push(value);
  }
  return limits;
}

export interface LimitRow {
  readonly limit: string;
  readonly value: Spread | undefined;
  /** What of ours it bounds: our median, and by how much that is larger. */
  readonly ours: readonly { readonly metric: Metric; readonly median: number; readonly ratio: number }[];
}

export function limitRows(measured: Measured, limits: Limits): LimitRow[] {
  const bounds = bounded[measured.workload.name]?.bounds ?? [];
  const rows = rowsOf(measured);
  return Object.entries(limits).map(([limit, values]) => {
    const value = spreadOf(values);
    const ours = bounds.flatMap((bound) => {
      const median = rows.find((row) => row.metric === bound.metric)?.values.stasis?.median;
      if (bound.limit !== limit || median === undefined || value === undefined || value.median === 0) return [];
      return [{ metric: bound.metric, median, ratio: median / value.median }];
    });
    return { limit, value, ours };
  });
}

const shortNames: Partial<Record<Metric, string>> = {
  frozenMs: 'frozen',
  engineMs: 'engine',
  checkpointMs: 'checkpoint that ends it',
  restoreMs: 'restore',
};

export const limitTitle = 'limits of this kernel, this run';

/** Cells: the limit, its value, and what of ours is bounded by it. */
export function limitCells(rows: readonly LimitRow[]): string[][] {
  return rows.map(({ limit, value, ours }) => [
    limit,
    value === undefined ? '-' : milliseconds(value.median),
    ours
      .map(
        ({ metric, median, ratio }) =>
          `${shortNames[metric] ?? metric} ${milliseconds(median)}: ${ratio.toFixed(2)} of it`,
      )
      .join('; '),
  ]);
}
