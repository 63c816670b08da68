// Managers that are daemons: where they are installed, how one is started and
// ended, and what it may leave behind.
import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync, existsSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { managersDirectory } from './paths.js';
import { isAlive, processesWhere, readOrEmpty } from './processes.js';
import { waitFor } from './wait.js';

/** Where hack/daemons.ts unpacks Debian sid's. */
export const daemonDirectory = join(managersDirectory, 'sid-daemons');
/** Where it installs stasis. */
export const installedStasis = join(managersDirectory, 'stasis', 'bin', 'stasis');

export function daemonProgram(name: 'containerd' | 'ctr' | 'docker' | 'dockerd' | 'runc'): string {
  return join(daemonDirectory, 'usr', name === 'dockerd' || name === 'runc' ? 'sbin' : 'bin', name);
}

export function daemonsAreInstalled(): boolean {
  return existsSync(join(daemonDirectory, 'complete')) && existsSync(installedStasis);
}

/** Daemons pass their environment on to their shims, and these to the runtime. */
export function daemonEnvironment(): Record<string, string> {
  return {
    PATH: `${join(managersDirectory, 'stasis/bin')}:${join(daemonDirectory, 'usr/bin')}:/usr/sbin:/usr/bin:/sbin:/bin`,
    STASIS_RUNTIME: daemonProgram('runc'),
  };
}

export class Daemon {
  readonly #process: ChildProcess;
  readonly #what: string;
  readonly #logFile: string;
  readonly #directory: string;

  private constructor(process: ChildProcess, what: string, logFile: string, directory: string) {
    this.#process = process;
    this.#what = what;
    this.#logFile = logFile;
    this.#directory = directory;
  }

  /**
   * Returns when it answers. `directory`: what marks all processes that belong to it. `ownNetwork`: it gets a network
   * namespace, where its bridges and rules of a firewall are not the host's.
   */
  static async start(
    program: string,
    args: readonly string[],
    options: {
      readonly logFile: string;
      readonly directory: string;
      readonly answers: () => Promise<boolean>;
      readonly ownNetwork?: boolean;
    },
  ): Promise<Daemon> {
    const log = openSync(options.logFile, 'a');
    const wrapper =
      options.ownNetwork === true ? ['unshare', '--net', 'sh', '-c', 'ip link set lo up && exec "$@"', 'sh'] : [];
    const [first, ...rest] = [...wrapper, program, ...args];
    const child = spawn(first!, rest, {
      cwd: '/',
      env: { ...daemonEnvironment(), TMPDIR: options.directory, HOME: options.directory },
      stdio: ['ignore', log, log],
    });
    closeSync(log);
    const daemon = new Daemon(child, program.split('/').at(-1)!, options.logFile, options.directory);
    try {
      const answers = async (): Promise<true | undefined> => {
        if (child.exitCode !== null) throw new Error(`${daemon.#what} has ended with status ${child.exitCode}`);
        return (await options.answers()) ? true : undefined;
      };
      await waitFor(`${daemon.#what} to answer`, answers, { timeoutMs: 40_000 });
    } catch (error) {
      await daemon.stop();
      throw new Error(`${(error as Error).message}:\n${daemon.log().split('\n').slice(-8).join('\n')}`);
    }
    return daemon;
  }

  get pid(): number {
    return this.#process.pid!;
  }

  log(): string {
    return readFileSync(this.#logFile, 'utf8');
  }

  /** Ends it and whatever of it is left; throws if something had to be ended that should have gone by itself. */
  async stop(): Promise<void> {
    const ended = (): true | undefined =>
      this.#process.exitCode !== null || this.#process.signalCode !== null ? true : undefined;
    this.#process.kill('SIGTERM');
    try {
      await waitFor(`${this.#what} to end`, ended, { timeoutMs: 20_000 });
    } finally {
      if (ended() === undefined) this.#process.kill('SIGKILL');
    }
    const left = (): number[] =>
      processesWhere((pid) => isAlive(pid) && readOrEmpty(`/proc/${pid}/cmdline`).includes(this.#directory));
    try {
      await waitFor(`all processes of ${this.#what} to go`, () => (left().length === 0 ? true : undefined), {
        timeoutMs: 5000,
        seen: () =>
          left()
            .map((pid) => readOrEmpty(`/proc/${pid}/cmdline`).replaceAll('\0', ' '))
            .join('; '),
      });
    } finally {
      for (const pid of left()) process.kill(pid, 'SIGKILL');
    }
  }
}
