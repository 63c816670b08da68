// One sample: a subject is started, checkpointed while it goes on, checkpointed
// to its end, restored, and ended. The same steps for both tools.
import { basename, join } from 'node:path';
import { waitFor } from '../../e2e/support/wait.js';
import { ExtraMemory } from './extra-memory.js';
import { sizeOf, readCheckpointStats, readRestoreStats } from './image-stats.js';
import { wallNs, type StateFile } from './state-file.js';
import type { Metric, Workload } from './workloads.js';

export const tools = ['stasis', 'criu', 'criu without its cache'] as const;
export type Tool = (typeof tools)[number];
export type Sample = Partial<Record<Metric, number>>;

/** What is checkpointed: a bare tree or a container. */
export interface Subject {
  /** Missing where the program does not tick. */
  readonly state: StateFile | undefined;
  /** False where a manager keeps images and statistics to itself. */
  readonly stats?: false;
  /** Milliseconds in all. `images` is empty, `work` too. */
  checkpoint(tool: Tool, images: string, work: string, live: boolean, flags: readonly string[]): Promise<number>;
  restore(tool: Tool, images: string, work: string, flags: readonly string[]): Promise<number>;
  /** When the engine began a restore that was asked for its timings; CLOCK_MONOTONIC. */
  engineStartNs?(): Promise<bigint>;
  destroy(): Promise<void>;
}

export interface Place {
  readonly images: string;
  readonly work: string;
}

export async function takeSample(
  start: () => Promise<Subject>,
  tool: Tool,
  workload: Workload,
  place: (name: string) => Place,
): Promise<Sample> {
  const ours = tool === 'stasis' ? workload.ours : undefined;
  const subject = await start();
  const sample: Sample = {};
  /** Options of the checkpoint that follows. */
  const prepare = async (name: string): Promise<readonly string[]> => {
    const options = ours?.checkpoint ?? [];
    if (ours?.preDump !== true) return options;
    const round = place(`${name}-before`);
    await subject.checkpoint(tool, round.images, round.work, true, ['--pre-dump', ...options]);
    return ['--parent-path', join('..', basename(round.images)), ...options];
  };
  try {
    const live = place('live');
    const liveOptions = await prepare('live');
    await subject.state?.reset();
    const extra = new ExtraMemory();
    try {
      sample.liveMs = await subject.checkpoint(tool, live.images, live.work, true, liveOptions);
    } finally {
      sample.extraBytes = extra.stop();
    }
    await subject.state?.tickAfter(wallNs());
    const frozenMs = subject.stats === false ? undefined : readCheckpointStats(live.work).frozenMs;
    if (frozenMs !== undefined) sample.frozenMs = frozenMs;
    if (subject.state) sample.gapMs = subject.state.read().gapMs;

    const last = place('last');
    const lastOptions = await prepare('last');
    sample.checkpointMs = await subject.checkpoint(tool, last.images, last.work, false, lastOptions);
    if (subject.stats !== false) sample.imageBytes = sizeOf(last.images);
    const from = wallNs();
    sample.restoreMs = await subject.restore(tool, last.images, last.work, ours?.restore ?? []);
    if (subject.stats !== false) sample.engineMs = readRestoreStats(last.work).engineMs;
    if (subject.state) {
      const tickNs = await subject.state.tickAfter(from);
      sample.firstTickMs = tickNs / 1e6;
      const asked = ours?.restore?.includes('--json') === true;
      const engineNs = asked ? await subject.engineStartNs?.() : undefined;
      // From one clock to the other, at this moment.
      if (engineNs !== undefined)
        sample.engineTickMs = Number(from + BigInt(tickNs) - wallNs() - engineNs + process.hrtime.bigint()) / 1e6;
    }
  } finally {
    await subject.destroy();
  }
  return sample;
}

export async function untilReady(state: StateFile): Promise<void> {
  await waitFor('the load to be ready', () => (state.read().ready ? true : undefined), { timeoutMs: 120_000 });
}
