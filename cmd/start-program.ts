// How the programs start: from a bundle, or from a snapshot of node that has
// loaded it (docs/design/0053). All that knows the difference.
import { ReadStream } from 'node:fs';
import { startupSnapshot } from 'node:v8';
import { exitAtOnce } from '../runtime-shim/end-process.js';

/** As nativecore/launcher/launcher_main.cc has it. */
const kHugePages =
  'glibc.malloc.hugetlb=1:glibc.malloc.top_pad=16777216:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=268435456:glibc.malloc.arena_max=1';

/** Node by itself would take its heap apart, page by page: 5 ms. process.exit() still waits for its threads: 1.5 ms. */
function endProgram(): void {
  exitAtOnce(Number(process.exitCode));
  process.exit();
}

/** `main` returns the exit status. */
export function startProgram(main: (words: readonly string[]) => Promise<number>): void {
  const start = (): void => {
    // The launcher's, for the start of node; hooks and base runtimes are to have what our caller has.
    if (process.env['GLIBC_TUNABLES'] === kHugePages) delete process.env['GLIBC_TUNABLES'];
    // Should main never come to an end, node ends when there is nothing left to wait for: that is no success.
    process.exitCode = 1;
    // By then all output has been written.
    process.once('beforeExit', endProgram);
    void main(process.argv.slice(2)).then((status) => (process.exitCode = status));
  };
  if (!startupSnapshot.isBuildingSnapshot()) return start();
  // Node loads these when they are first asked for, and compiles them then: 4 ms. Snapshots hold them loaded.
  void [performance, ReadStream];
  startupSnapshot.setDeserializeMainFunction(start);
}
