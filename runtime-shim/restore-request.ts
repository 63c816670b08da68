// What a restore is asked for and what it answers.
import type { Timing } from '../nativecore/index.js';
import type { TcpRule } from '../oci-spec/tcp-rule.js';
import type { BaseRuntime } from './container/index.js';
import type { Degradation } from './errors/index.js';
import type { OnProgress } from './phase-clock.js';

export interface ContainerRestore {
  /** Directory of the states of all containers. */
  readonly root: string;
  readonly id: string;
  /** Absolute. */
  readonly bundle: string;
  /** Whether its cgroup is a scope of systemd, not a directory of ours. */
  readonly systemdCgroup: boolean;
  /** Absolute. */
  readonly imagePath: string;
  readonly workPath: string | undefined;
  /** Absolute. */
  readonly pidFile: string | undefined;
  /** Absolute: where the master of the container's terminal is sent. */
  readonly consoleSocket: string | undefined;
  /** Whether the caller returns when the container runs. */
  readonly detach: boolean;
  /** Restored up to the last step, then left waiting as "created" until the base runtime's `start`. */
  readonly prepare?: boolean;
  readonly noPivot: boolean;
  readonly noNewKeyring: boolean;
  readonly shellJob: boolean;
  /** What an option says of TCP connections; undefined: the annotation of the bundle says it. */
  readonly tcp?: TcpRule | undefined;
  /** Release first, fill private memory while the container runs. */
  readonly lazyPages?: boolean;
  /** From the start of the core until every task is parked. */
  readonly deadlineMs: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: OnProgress | undefined;
}

/** As a caller gives it. */
export interface RestoreRequest extends Omit<ContainerRestore, 'root'> {
  /** undefined: where the base runtime keeps its containers. */
  readonly root: string | undefined;
}

export const restoreDefaults = { deadlineMs: 120_000 } as const;

export interface RestoredContainer {
  readonly initHostPid: number;
  readonly base: BaseRuntime;
  readonly root: string;
  /** In the foreground: of the container's terminal, the caller's from now on. */
  readonly masterFd: number | undefined;
  readonly degradations: readonly Degradation[];
  readonly timings: readonly Timing[];
}
