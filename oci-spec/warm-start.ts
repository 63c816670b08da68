// The annotations of containers that start warm: where a checkpoint is, and
// when it is to be taken.
import { FormatError } from './json.js';

export const warmAnnotation = {
  /** Archive or image directory: `create` restores it, if it is there. */
  restore: 'org.stasis.restore',
  /** When it is made, by the poststart hook. */
  checkpointWhen: 'org.stasis.checkpoint-when',
  /** Seconds after which the hook gives up. */
  deadline: 'org.stasis.checkpoint-deadline',
  /** Where the container's output is, for log:REGEX, if the hook cannot find it. */
  log: 'org.stasis.log',
} as const;

export type WarmCondition =
  | { readonly kind: 'tcp'; readonly port: number }
  | { readonly kind: 'file'; readonly path: string }
  | { readonly kind: 'log'; readonly pattern: RegExp }
  | { readonly kind: 'seconds'; readonly seconds: number };

/** Throws FormatError. */
export function parseWarmCondition(text: string): WarmCondition {
  const [, kind, value] = /^(tcp|file|log|seconds):(.+)$/s.exec(text) ?? [];
  const refuse = (problem: string): never => {
    throw new FormatError(warmAnnotation.checkpointWhen, `is ${JSON.stringify(text)}: ${problem}`);
  };
  switch (kind) {
    case 'tcp': {
      const port = Number(value);
      if (!/^\d{1,5}$/.test(value!) || port < 1 || port > 65535) refuse('a port is a number from 1 to 65535');
      return { kind, port };
    }
    case 'file':
      if (!value!.startsWith('/')) refuse('the path has to begin with /');
      return { kind, path: value! };
    case 'log':
      try {
        return { kind, pattern: new RegExp(value!) };
      } catch (error) {
        return refuse((error as Error).message);
      }
    case 'seconds':
      if (!/^\d{1,9}(\.\d{1,3})?$/.test(value!)) refuse('seconds are a number');
      return { kind, seconds: Number(value) };
    default:
      return refuse('use tcp:PORT, file:PATH, log:REGEX or seconds:N');
  }
}

/** Whether /proc/PID/net/tcp or tcp6 has a socket that listens at this port. */
export function listensAt(procNetTcp: string, port: number): boolean {
  const wanted = `:${port.toString(16).toUpperCase().padStart(4, '0')}`;
  return procNetTcp.split('\n').some((line) => {
    const [, local, , state] = line.trim().split(/\s+/);
    return state === '0A' && local?.endsWith(wanted) === true;
  });
}
