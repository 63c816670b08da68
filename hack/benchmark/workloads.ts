// What is measured, and what is wanted of it. A goal is a ratio to the peer in
// the same run, or a number of our own.
export type Metric =
  | 'frozenMs'
  | 'gapMs'
  | 'liveMs'
  | 'checkpointMs'
  | 'restoreMs'
  | 'engineMs'
  | 'firstTickMs'
  | 'engineTickMs'
  | 'extraBytes'
  | 'imageBytes';

export const metrics: Readonly<Record<Metric, string>> = {
  frozenMs: 'frozen, as the tool says',
  gapMs: 'longest gap between two ticks of the program',
  liveMs: 'checkpoint that leaves it running, in all',
  checkpointMs: 'checkpoint that ends it, in all',
  restoreMs: 'restore, in all',
  engineMs: 'restore, the engine alone',
  firstTickMs: 'from the start of the restore to the first tick',
  engineTickMs: "from the engine's first work to the first tick",
  extraBytes: 'memory that the checkpoint took meanwhile',
  imageBytes: 'images',
};

export interface Goal {
  readonly metric: Metric;
  /** At most this part of the peer's median. */
  readonly ratio?: number;
  /** At most this, in the metric's unit. */
  readonly most?: number;
}

export interface Workload {
  readonly name: string;
  /** A bare process tree in a pid namespace of its own, a container of runc's, or one of podman's. */
  readonly kind: 'tree' | 'container' | 'podman';
  /** Arguments of e2e/bench/load.c after the state file; "{dir}" is a folder for its files. */
  readonly load: readonly string[];
  /** Or a program of its own (containers only). */
  readonly program?: 'busybox' | 'redis';
  readonly goals?: readonly Goal[];
  /** One of a curve: the curve's name and the place on it. */
  readonly curve?: { readonly name: string; readonly at: number };
  /** Options of ours that the peer does not have; then it is measured without it. */
  readonly ours?: {
    readonly checkpoint?: readonly string[];
    readonly restore?: readonly string[];
    /** A round before each checkpoint, which then writes what has changed since. CRIU wants soft-dirty for that. */
    readonly preDump?: true;
  };
  /** Also with CRIU's probe cache removed before each run. */
  readonly coldCriu?: boolean;
  /** Unless told otherwise, measured with images on the disk as well. */
  readonly onDisk?: true;
  readonly quick?: boolean;
  readonly maxPairs?: number;
  /** What vm.max_map_count has to be. */
  readonly mappings?: number;
  readonly timeoutMs?: number;
}

const memory = (mebibytes: number, detail: 'random' | 'zero', more: Partial<Workload> = {}): Workload => ({
  name: `${mebibytes < 1024 ? `${mebibytes} MiB` : `${mebibytes / 1024} GiB`}, ${detail === 'zero' ? 'mostly zero' : 'random'}`,
  kind: 'tree',
  load: ['memory', String(mebibytes), detail],
  ...more,
});

const lazily = (gibibytes: number, more: Partial<Workload> = {}): Workload => ({
  name: `container, ${gibibytes} GiB, restored lazily`,
  kind: 'container',
  load: ['memory', String(gibibytes * 1024), 'random'],
  ours: { restore: ['--lazy-pages', '--json'] },
  goals: [{ metric: 'engineTickMs', most: 15 }],
  ...more,
});

export const workloads: readonly Workload[] = [
  {
    name: 'small process',
    kind: 'tree',
    load: ['idle', '1'],
    coldCriu: true,
    quick: true,
    goals: [
      { metric: 'frozenMs', ratio: 0.4 },
      { metric: 'engineMs', ratio: 1 },
    ],
  },
  memory(64, 'random', { quick: true }),
  memory(64, 'zero'),
  memory(1024, 'random', {
    onDisk: true,
    quick: true,
    goals: [
      { metric: 'frozenMs', ratio: 0.04 },
      { metric: 'frozenMs', most: 25 },
      { metric: 'engineMs', ratio: 0.4 },
    ],
  }),
  memory(1024, 'zero'),
  memory(4096, 'random', {
    maxPairs: 5,
    timeoutMs: 300_000,
    goals: [
      { metric: 'frozenMs', most: 100 },
      { metric: 'engineMs', most: 4096 / 3 / 0.9313 },
    ],
  }),
  memory(4096, 'zero', { maxPairs: 3, timeoutMs: 300_000 }),
  { name: '64 MiB, written at 500 MB/s', kind: 'tree', load: ['dirty', '64'] },
  { name: '1 GiB, written at 500 MB/s', kind: 'tree', load: ['dirty', '1024'] },
  { name: '4 GiB, written at 500 MB/s', kind: 'tree', load: ['dirty', '4096'], maxPairs: 3, timeoutMs: 300_000 },
  {
    name: '100 processes',
    kind: 'tree',
    load: ['processes', '100'],
    quick: true,
    curve: { name: 'processes', at: 100 },
    goals: [
      { metric: 'frozenMs', ratio: 0.2 },
      { metric: 'engineMs', ratio: 0.5 },
    ],
  },
  { name: '10 processes', kind: 'tree', load: ['processes', '10'], curve: { name: 'processes', at: 10 } },
  {
    name: '1000 processes',
    kind: 'tree',
    load: ['processes', '1000'],
    curve: { name: 'processes', at: 1000 },
    maxPairs: 5,
    timeoutMs: 300_000,
  },
  {
    name: '1000 open files',
    kind: 'tree',
    load: ['files', '1000', '{dir}'],
    quick: true,
    goals: [
      { metric: 'frozenMs', ratio: 0.25 },
      { metric: 'engineMs', ratio: 0.8 },
    ],
  },
  { name: '10,000 open files', kind: 'tree', load: ['files', '10000', '{dir}'], maxPairs: 5 },
  { name: '100 mappings', kind: 'tree', load: ['mappings', '100'], curve: { name: 'mappings', at: 100 } },
  { name: '1000 mappings', kind: 'tree', load: ['mappings', '1000'], curve: { name: 'mappings', at: 1000 } },
  {
    name: '10,000 mappings',
    kind: 'tree',
    load: ['mappings', '10000'],
    quick: true,
    curve: { name: 'mappings', at: 10_000 },
    goals: [
      { metric: 'frozenMs', ratio: 0.15 },
      { metric: 'engineMs', ratio: 0.5 },
    ],
  },
  {
    name: '100,000 mappings',
    kind: 'tree',
    load: ['mappings', '100000'],
    curve: { name: 'mappings', at: 100_000 },
    // Those of the load, and of what checkpoints and restores it.
    mappings: 250_000,
    maxPairs: 3,
    timeoutMs: 300_000,
  },
  {
    name: '200 threads',
    kind: 'tree',
    load: ['threads', '200'],
    quick: true,
    goals: [
      { metric: 'frozenMs', ratio: 0.3 },
      { metric: 'engineMs', ratio: 0.6 },
    ],
  },
  { name: '1000 threads', kind: 'tree', load: ['threads', '1000'], maxPairs: 5 },
  { name: '500 unix sockets and pipes', kind: 'tree', load: ['sockets', '500'] },
  {
    name: 'idle container',
    kind: 'container',
    load: ['idle', '1'],
    onDisk: true,
    coldCriu: true,
    quick: true,
    goals: [
      { metric: 'frozenMs', ratio: 0.05 },
      { metric: 'checkpointMs', ratio: 0.5 },
      { metric: 'restoreMs', ratio: 0.8 },
    ],
  },
  {
    name: 'podman container checkpoint and restore',
    kind: 'podman',
    load: [],
    maxPairs: 5,
  },
  {
    name: 'redis, 1 GiB',
    kind: 'container',
    program: 'redis',
    load: [],
    onDisk: true,
    maxPairs: 5,
    timeoutMs: 300_000,
  },
  { name: 'container, 1 GiB', kind: 'container', load: ['memory', '1024', 'random'] },
  lazily(1),
  lazily(4, { maxPairs: 3, timeoutMs: 300_000 }),
  {
    name: 'container, 1 GiB, compressed',
    kind: 'container',
    load: ['memory', '1024', 'zero'],
    ours: { checkpoint: ['--compress=zstd'] },
  },
  {
    name: 'container, 1 GiB, after a pre-dump',
    kind: 'container',
    load: ['memory', '1024', 'random'],
    ours: { preDump: true },
  },
];
