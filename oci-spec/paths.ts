// Lexical path operations, as Go's filepath does them: no file system involved.
import { posix } from 'node:path';

export const isAbsolute = posix.isAbsolute;

/** Cleaned; a trailing slash goes. */
export function normalize(path: string): string {
  const clean = posix.normalize(path);
  return clean.length > 1 && clean.endsWith('/') ? clean.slice(0, -1) : clean;
}

export function join(...parts: readonly string[]): string {
  return normalize(posix.join(...parts));
}
