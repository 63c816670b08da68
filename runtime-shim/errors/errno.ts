// Errnos as people read them: name and words.
import { getSystemErrorMap } from 'node:util';
import { StasisError } from './stasis-error.js';
import type { ErrorCode } from './codes.js';
import type { Subject } from './stasis-error.js';

/** "ENOSPC (no space left on device)"; the bare number if the kernel has a newer one. */
export function errnoText(errorNumber: number): string {
  const known = getSystemErrorMap().get(-Math.abs(errorNumber));
  return known === undefined ? `errno ${errorNumber}` : `${known[0]} (${known[1]})`;
}

/** The errno of a failed node call, as text; anything else by its message. */
export function causeText(error: unknown): string {
  const { errno, message } = error as NodeJS.ErrnoException;
  return typeof errno === 'number' ? errnoText(errno) : message;
}

export function errnoCode(error: unknown): string {
  return (error as NodeJS.ErrnoException).code ?? '';
}

/** A failed file operation as a StasisError; no space and no permission get their own remedy. */
export function fileError(message: string, path: string, error: unknown, code: ErrorCode = 'ENVIRONMENT'): StasisError {
  if (error instanceof StasisError) return error;
  const name = errnoCode(error);
  const noSpace = name === 'ENOSPC' || name === 'EDQUOT';
  const hint = noSpace
    ? 'free space on that file system, or give a directory on another one'
    : name === 'EROFS' || name === 'EACCES' || name === 'EPERM'
      ? 'give a directory that can be written to'
      : name === 'ENOENT' || name === 'ENOTDIR'
        ? 'give a path in a directory that exists'
        : undefined;
  const subject: Subject = { path };
  return new StasisError({
    code: noSpace ? 'NO_SPACE' : code,
    message: `${message}: ${causeText(error)}`,
    subject,
    ...(hint === undefined ? {} : { hint }),
    cause: error,
  });
}
