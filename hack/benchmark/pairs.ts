// Pairs of samples, alternating, so that what else the machine does hits both
// tools. A tool that fails is out; the others go on.
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { takeSample, type Place, type Sample, type Subject, type Tool } from './measure.js';
import type { Workload } from './workloads.js';

export interface TreeRequest {
  readonly workload: Workload;
  readonly tools: readonly Tool[];
  readonly pairs: number;
  /** For the images, and the files of bare trees. */
  readonly directory: string;
}

export type ToolResult =
  { readonly samples: readonly Sample[] } | { readonly samples: readonly Sample[]; readonly failure: string };
export type WorkloadResult = Partial<Record<Tool, ToolResult>>;

export async function measurePairs(
  request: TreeRequest,
  start: (tool: Tool) => Promise<Subject>,
): Promise<WorkloadResult> {
  const samples = new Map<Tool, Sample[]>(request.tools.map((tool) => [tool, []]));
  const failures = new Map<Tool, string>();
  // The first round warms up and does not count.
  for (let round = 0; round <= request.pairs; round++) {
    // Who goes first changes: neither always finds the caches that the other has filled.
    const order = round % 2 === 0 ? request.tools : [...request.tools].reverse();
    for (const tool of order) {
      if (failures.has(tool)) continue;
      try {
        const sample = await takeSample(() => start(tool), tool, request.workload, place(request.directory));
        if (round > 0) samples.get(tool)?.push(sample);
      } catch (error) {
        failures.set(tool, (error as Error).message.split('\n').slice(-2).join(' '));
      }
    }
  }
  return Object.fromEntries(
    request.tools.map((tool) => {
      const failure = failures.get(tool);
      return [tool, { samples: samples.get(tool) ?? [], ...(failure === undefined ? {} : { failure }) }];
    }),
  );
}

/** Empty folders, each time. */
function place(directory: string): (name: string) => Place {
  return (name) => {
    const images = join(directory, `images-${name}`);
    const work = `${images}.work`;
    for (const folder of [images, work]) {
      rmSync(folder, { recursive: true, force: true });
      mkdirSync(folder, { recursive: true, mode: 0o700 });
    }
    return { images, work };
  };
}
