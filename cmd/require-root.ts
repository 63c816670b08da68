import { StasisError } from '../runtime-shim/errors/index.js';

export function requireRoot(goal: string): void {
  if (process.geteuid?.() === 0) return;
  throw new StasisError({
    code: 'NOT_ROOT',
    message: `cannot ${goal}: this needs root, the user is ${process.geteuid?.() ?? 'unknown'}`,
    hint: 'run it as root',
  });
}
