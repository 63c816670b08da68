// The one error type: what, where, why and what to do, as data. Rendering is
// in cmd/render; the catalogue of codes is codes.ts.
import { kindOfCode, type ErrorCode, type ErrorKind } from './codes.js';

/** Where it happened. Numbers say whose they are; nothing here comes from a target's memory or environment. */
export interface Subject {
  readonly container?: string;
  readonly hostPid?: number;
  readonly nsPid?: number;
  readonly comm?: string;
  readonly targetFd?: number;
  readonly path?: string;
  readonly address?: bigint;
  readonly mount?: string;
  readonly step?: string;
  readonly image?: string;
}

export interface StasisErrorFields {
  readonly code: ErrorCode;
  /** First line: `cannot <verb> <object>: <reason>`, lower case, no full stop. */
  readonly message: string;
  readonly subject?: Subject;
  /** Why the kernel or we cannot do it, when the message does not say it all. */
  readonly why?: string;
  /** What to do; only when it is known to help. */
  readonly hint?: string;
  readonly cause?: unknown;
  readonly suppressed?: readonly StasisError[];
  /** All blockers found in one pass, when there are several. */
  readonly objections?: readonly StasisError[];
}

export class StasisError extends Error {
  readonly code: ErrorCode;
  readonly kind: ErrorKind;
  readonly subject: Subject;
  readonly why: string | undefined;
  readonly hint: string | undefined;
  readonly suppressed: readonly StasisError[];
  readonly objections: readonly StasisError[];

  constructor(fields: StasisErrorFields) {
    super(fields.message, fields.cause === undefined ? undefined : { cause: fields.cause });
    this.name = 'StasisError';
    this.code = fields.code;
    this.kind = kindOfCode(fields.code);
    this.subject = fields.subject ?? {};
    this.why = fields.why;
    this.hint = fields.hint;
    this.suppressed = fields.suppressed ?? [];
    this.objections = fields.objections ?? [];
  }
}

/** Something that is carried only in part: restored, and listed in the result. */
export interface Degradation {
  readonly code: string;
  readonly message: string;
  readonly subject: Subject;
}
