// The page that e2e/bench/load.c writes what it sees into.
import { closeSync, existsSync, openSync, readSync, writeSync } from 'node:fs';
import { waitFor } from '../../e2e/support/wait.js';

export interface State {
  readonly ready: boolean;
  readonly ticks: bigint;
  readonly lastNs: bigint;
  readonly gapMs: number;
  readonly gapEndNs: bigint;
}

const kResetOffset = 40;

/** Nanoseconds since 1970, as the load has them; to a microsecond. */
export function wallNs(): bigint {
  return BigInt(Math.round((performance.timeOrigin + performance.now()) * 1000)) * 1000n;
}

export class StateFile {
  constructor(readonly path: string) {}

  read(): State {
    const page = Buffer.alloc(64);
    if (existsSync(this.path)) {
      const file = openSync(this.path, 'r');
      readSync(file, page, 0, page.length, 0);
      closeSync(file);
    }
    return {
      ready: page.readBigUInt64LE(0) === 1n,
      ticks: page.readBigUInt64LE(8),
      lastNs: page.readBigUInt64LE(16),
      gapMs: Number(page.readBigUInt64LE(24)) / 1e6,
      gapEndNs: page.readBigUInt64LE(32),
    };
  }

  /** Forgets the longest gap. */
  async reset(): Promise<void> {
    const file = openSync(this.path, 'r+');
    const one = Buffer.alloc(8);
    one.writeBigUInt64LE(1n);
    writeSync(file, one, 0, 8, kResetOffset);
    closeSync(file);
    await this.tickAfter(wallNs());
  }

  /** Nanoseconds from that moment (wallNs) to the first tick after it, as the program saw it. */
  async tickAfter(from: bigint): Promise<number> {
    const state = await waitFor(
      'the load to tick',
      () => {
        const seen = this.read();
        return seen.lastNs > from ? seen : undefined;
      },
      { timeoutMs: 60_000 },
    );
    // If its longest gap ended after that moment, the tick at its end was the first.
    return Number((state.gapEndNs > from ? state.gapEndNs : state.lastNs) - from);
  }
}
