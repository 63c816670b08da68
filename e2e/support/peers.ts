// The programs of build/peers, and how to start them.
import { dirname, join } from 'node:path';
import { peerDirectory } from './paths.js';

export interface Invocation {
  readonly program: string;
  readonly args: readonly string[];
  readonly env: Record<string, string>;
}

export const peers = {
  criu: join(peerDirectory, 'usr/sbin/criu'),
  runc: join(peerDirectory, 'usr/sbin/runc'),
  crun: join(peerDirectory, 'usr/bin/crun'),
  checkpointctl: join(peerDirectory, 'usr/bin/checkpointctl'),

  /** crit is Python; sid's package runs on this Debian's interpreter. */
  crit(args: readonly string[]): Invocation {
    return {
      program: '/usr/bin/python3',
      args: ['-m', 'crit', ...args],
      env: {
        PATH: '/usr/sbin:/usr/bin:/sbin:/bin',
        PYTHONPATH: join(peerDirectory, 'usr/lib/python3/dist-packages'),
        PYTHONDONTWRITEBYTECODE: '1',
      },
    };
  },
} as const;

/** An environment in which runc finds CRIU, by its name. */
export const withCriu = { PATH: `${dirname(peers.criu)}:/usr/sbin:/usr/bin:/sbin:/bin` };
