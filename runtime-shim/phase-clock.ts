// Where the time of a sequence goes, and how far its long parts have come. The
// clock is the core's (CLOCK_MONOTONIC), so both lists make one.
import type { Timing } from '../nativecore/index.js';

/** Of one phase; 0 of 0 while nothing is known. */
export interface WorkProgress {
  /** As in the list of timings. */
  readonly phase: string;
  readonly doneBytes: number;
  readonly totalBytes: number;
}
export type OnProgress = (progress: WorkProgress) => void;

export class PhaseClock {
  readonly #startNs = process.hrtime.bigint();
  readonly #phases: Timing[] = [];
  #current: { readonly phase: string; readonly startNs: bigint } | undefined;

  /** Ends the phase before. */
  enter(phase: string): void {
    const now = this.#end();
    this.#current = { phase, startNs: now };
  }

  /** All phases until now in order of their start, those of the core among them, and "total". */
  timings(ofCore: readonly Timing[]): Timing[] {
    const endNs = this.#end();
    const all = [...this.#phases, ...ofCore].sort((one, other) => (one.startNs < other.startNs ? -1 : 1));
    return [...all, { phase: 'total', startNs: this.#startNs, endNs }];
  }

  #end(): bigint {
    const now = process.hrtime.bigint();
    if (this.#current !== undefined) this.#phases.push({ ...this.#current, endNs: now });
    this.#current = undefined;
    return now;
  }
}
