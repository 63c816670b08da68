// Making directories. Not node's recursive mkdir: where the kernel answers
// ENOENT although the parent exists (/proc), that one never returns.
import { mkdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { errnoCode } from './errors/index.js';

/** Also its parents; that it exists already is fine. The mode is for all that is made. */
export function makeDirectory(path: string, mode: number): void {
  try {
    mkdirSync(path, { mode });
  } catch (error) {
    if (errnoCode(error) === 'EEXIST') return;
    if (errnoCode(error) !== 'ENOENT' || dirname(path) === path) throw error;
    makeDirectory(dirname(path), mode);
    mkdirSync(path, { mode });
  }
}
