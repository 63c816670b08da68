// Archives and images that tests make of checkpoints, and hand to managers.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { stasisProgram } from './paths.js';
import { mustRun } from './run.js';

/** Returns what the new form has no place for, a line each. */
export async function pack(source: string, ...options: readonly string[]): Promise<string> {
  return (await mustRun(stasisProgram, ['pack', source, ...options])).stderr;
}

/** Options by which podman and buildah take images that nobody has signed, whatever containers-policy.json(5) of the host says. */
export function withoutSignatures(directory: string): readonly string[] {
  const policy = join(directory, 'policy.json');
  writeFileSync(policy, '{"default":[{"type":"insecureAcceptAnything"}]}');
  return ['--signature-policy', policy];
}
