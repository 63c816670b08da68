// Images as another machine would have written them, and what a restore says of them.
import assert from 'node:assert/strict';
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { peers } from './peers.js';
import { mustRun } from './run.js';

/** What they are, what changes crit's text of a core image into theirs, and the refusal. */
export const otherMachines = [
  [
    'of another architecture',
    (core: string) => core.replace('"mtype": "X86_64"', '"mtype": "AARCH64"'),
    /cannot restore: the checkpoint was made on another kind of machine .*; restore on a machine of the same arch/,
  ],
  [
    'of a processor with more registers',
    // Bit 62 is a component that no processor has.
    (core: string) =>
      core.replace(/"xstate_bv": "?(0x)?[0-9a-f]+"?/, (found) =>
        found.includes('0x') ? '"xstate_bv": "0x4000000000000003"' : '"xstate_bv": 4611686018427387907',
      ),
    /uses processor state that this machine does not have \(component 62\); restore on a machine with the same/,
  ],
] as const;

/** As another machine would have written it: changed by crit. */
export async function alterCore(directory: string, change: (core: string) => string): Promise<void> {
  const image = join(
    directory,
    readdirSync(directory).find((name) => /^core-\d+\.img$/.test(name))!,
  );
  const crit = async (...words: string[]): Promise<string> => {
    const { program, args, env } = peers.crit(words);
    return (await mustRun(program, args, { env })).stdout;
  };
  const before = await crit('show', image);
  const text = `${directory}.json`;
  writeFileSync(text, change(before));
  assert.notEqual(readFileSync(text, 'utf8'), before, 'nothing was changed');
  await crit('encode', '-i', text, '-o', image);
  rmSync(text);
}
