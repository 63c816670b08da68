// The container of the fault tests: a counter and two filters connected by
// pipes. A process that was harmed, a byte that was lost or doubled, or a
// stretch spent frozen shows in its output.
import { truncateSync } from 'node:fs';
import type { Container } from './container.js';
import type { TestBed } from './test-bed.js';
import { waitFor } from './wait.js';

const program = `
  n=0
  while :; do n=$((n + 1)); echo "$n"; sleep 0.01; done | while read -r line; do echo "$line"; done | cat
`;

export interface Pipeline {
  readonly container: Container;
  /** Waits until it has counted some steps further. */
  goesOn(): Promise<void>;
  /** Throws unless every number came once and in order. */
  isGapless(): void;
  /** Empties the output. */
  forgetFuture(): void;
}

export async function startPipeline(bed: TestBed): Promise<Pipeline> {
  const container = await bed.start({ args: ['sh', '-c', program] });
  const lines = (): string[] => container.output().split('\n').slice(0, -1);
  const goesOn = async (): Promise<void> => {
    const reached = lines().length;
    await waitFor('the pipeline to go on', () => (lines().length > reached + 3 ? true : undefined), {
      seen: () => `${lines().length} lines`,
    });
  };
  await goesOn();
  return {
    container,
    goesOn,
    isGapless: () => {
      lines().forEach((line, index) => {
        if (line !== String(index + 1)) throw new Error(`line ${index + 1} of the output is "${line}"`);
      });
    },
    forgetFuture: () => truncateSync(container.outputFile),
  };
}
