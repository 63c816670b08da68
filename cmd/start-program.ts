// How the programs start: from a bundle, from a snapshot of node that has
// loaded it (docs/design/0053), or from an image of a node that has been
// started with that (docs/design/0072). All that knows the difference.
import { ReadStream, writeSync } from 'node:fs';
import { startupSnapshot } from 'node:v8';
import { becomeImage, exitAtOnce, isAskedForImage, takeWords } from '../runtime-shim/own-process.js';
import { rehearse, type Main, type Rehearsal } from './rehearsal.js';

/** As nativecore/launcher/launcher_main.cc has it. */
const kHugePages =
  'glibc.malloc.hugetlb=1:glibc.malloc.top_pad=16777216:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=268435456:glibc.malloc.arena_max=1';

/** Node by itself would take its heap apart, page by page: 5 ms. process.exit() still waits for its threads: 1.5 ms. */
function endProgram(): void {
  exitAtOnce(Number(process.exitCode));
  process.exit();
}

/** `main` returns the exit status. */
export function startProgram(main: Main, rehearsal: Rehearsal): void {
  const start = (): void => {
    if (!isAskedForImage()) return run(main, takeWords());
    void rehearse(main, rehearsal).then((why) => {
      // Not through process.stderr, which a process that starts from the image makes of its own descriptor.
      if (why !== undefined) writeSync(2, `the image is made without a rehearsal, and starts are slower: ${why}\n`);
      run(main, becomeImage());
    });
  };
  if (!startupSnapshot.isBuildingSnapshot()) return start();
  // Node loads these when they are first asked for, and compiles them then: 4 ms. Snapshots hold them loaded.
  void [performance, ReadStream];
  startupSnapshot.setDeserializeMainFunction(start);
}

function run(main: Main, words: readonly string[]): void {
  // The launcher's, for the start of node; hooks and base runtimes are to have what our caller has.
  if (process.env['GLIBC_TUNABLES'] === kHugePages) delete process.env['GLIBC_TUNABLES'];
  // Should main never come to an end, node ends when there is nothing left to wait for: that is no success.
  process.exitCode = 1;
  // By then all output has been written.
  process.once('beforeExit', endProgram);
  void main(words).then((status) => (process.exitCode = status));
}
