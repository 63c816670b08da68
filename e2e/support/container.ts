// A container under test: a bundle, started through stasis, with its standard
// output in a file, driven by the built commands only.
import assert from 'node:assert/strict';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { isFrozen, processesIn } from './cgroups.js';
import { stasisProgram } from './paths.js';
import { isAlive, processState, tracerOf } from './processes.js';
import { makeRootfs, type RootfsKind } from './rootfs.js';
import { describeFailure, run, type CommandOptions, type CommandResult } from './run.js';
import { defaultSpec, type Spec } from './spec.js';
import { waitFor } from './wait.js';
import { cgroupParent } from './run-identity.js';

export interface ContainerOptions {
  /** Folder of the test; bundle, images, logs and state go below it. */
  readonly directory: string;
  readonly id: string;
  readonly args: readonly string[];
  readonly rootfs?: RootfsKind;
  readonly targets?: readonly string[];
  readonly adjust?: (spec: Spec) => void;
  /** Files to put into the root file system, path to content. */
  readonly files?: Readonly<Record<string, string>>;
  /** Where output goes: to plain files outside the container, or into pipes whose readers write those files. */
  readonly streams?: 'file' | 'pipe';
  /** The base runtime: runc of the system unless given. */
  readonly base?: string;
  /** Under the systemd cgroup driver: in this slice, "a-b.slice". */
  readonly slice?: string;
}

export interface ContainerState {
  readonly status: string;
  readonly pid: number;
}

/**
 * Runs its arguments with pipes as standard output and error (Node would make
 * socket pairs) and returns when they have ended; the readers live on with the
 * container.
 */
const behindPipes = `
  {
    { "$@" 3>&-; echo $? >&3; } 2>&1 >&4 4>&- | cat >>"$ERRORS" 3>&- 4>&-
  } 3>"$STATUS" 4>&1 | cat >>"$OUTPUT" &
  until [ -s "$STATUS" ]; do sleep 0.01; done
  exit "$(cat "$STATUS")"
`;

export class Container {
  readonly id: string;
  readonly directory: string;
  readonly bundle: string;
  readonly rootfs: string;
  readonly outputFile: string;
  readonly cgroupPath: string;
  /** runc's --root for this test. */
  readonly stateRoot: string;
  readonly #streams: 'file' | 'pipe';
  readonly #base: string | undefined;
  /** Before the verb. */
  readonly #globals: readonly string[];

  private constructor(options: ContainerOptions) {
    this.id = options.id;
    this.directory = options.directory;
    this.bundle = join(options.directory, `bundle-${options.id}`);
    this.rootfs = join(this.bundle, 'rootfs');
    this.outputFile = join(options.directory, `${options.id}.out`);
    this.stateRoot = join(options.directory, 'state');
    this.cgroupPath = options.slice === undefined ? `${cgroupParent}/${options.id}` : scopePath(options.slice, options);
    this.#globals = [...['--root', this.stateRoot], ...(options.slice === undefined ? [] : ['--systemd-cgroup'])];
    this.#streams = options.streams ?? 'file';
    this.#base = options.base;
  }

  /** Writes the bundle; starts nothing. */
  static async prepare(options: ContainerOptions): Promise<Container> {
    const container = new Container(options);
    await makeRootfs(options.rootfs ?? 'busybox', container.rootfs, options.targets ?? []);
    const cgroupsPath = options.slice === undefined ? container.cgroupPath : `${options.slice}:stasis:${options.id}`;
    const spec = defaultSpec(options.args, container.rootfs, cgroupsPath);
    options.adjust?.(spec);
    mkdirSync(container.stateRoot, { recursive: true, mode: 0o700 });
    writeFileSync(join(container.bundle, 'config.json'), JSON.stringify(spec, undefined, 2));
    for (const [path, content] of Object.entries(options.files ?? {})) {
      writeFileSync(join(container.rootfs, path), content);
    }
    return container;
  }

  /** Writes the bundle and runs it through stasis, detached. */
  static async start(options: ContainerOptions): Promise<Container> {
    const container = await Container.prepare(options);
    await container.mustRunDetached(['run', '--detach', '--bundle', container.bundle, container.id]);
    return container;
  }

  /** Runs `stasis --root ... ARGS` to its end. */
  async stasis(args: readonly string[], options: CommandOptions = {}): Promise<CommandResult> {
    const env = this.#base === undefined ? {} : { env: { ...environment(), ...options.env, ...this.#variables() } };
    return await run(stasisProgram, [...this.#globals, ...args], { ...options, ...env });
  }

  /** The same through the base runtime itself. */
  async runc(args: readonly string[], options: CommandOptions = {}): Promise<CommandResult> {
    return await run(this.#base ?? 'runc', [...this.#globals, ...args], options);
  }

  #variables(): Record<string, string> {
    return this.#base === undefined ? {} : { STASIS_RUNTIME: this.#base };
  }

  async must(args: readonly string[], options: CommandOptions = {}): Promise<CommandResult> {
    const result = await this.stasis(args, options);
    if (result.exitCode !== 0) throw new Error(describeFailure(result));
    return result;
  }

  /**
   * Runs a command whose standard streams become the container's: they must
   * not be pipes of ours, or the command would seem to run for ever.
   */
  async runDetached(
    args: readonly string[],
    program: string = stasisProgram,
    variables: Readonly<Record<string, string>> = {},
  ): Promise<CommandResult> {
    const errorFile = join(this.directory, `${this.id}.err`);
    const output = openSync(this.outputFile, 'a');
    const errors = openSync(errorFile, 'a');
    const before = readFileSync(errorFile, 'utf8').length;
    try {
      const full = [program, ...this.#globals, ...args];
      const result =
        this.#streams === 'file'
          ? await run(program, full.slice(1), {
              stdout: output,
              stderr: errors,
              env: { ...environment(), ...this.#variables(), ...variables },
            })
          : await run('sh', ['-c', behindPipes, 'sh', ...full], {
              stdout: errors,
              stderr: errors,
              env: {
                ...environment(),
                ...this.#variables(),
                ...variables,
                STATUS: join(this.directory, `status-${nextNumber()}`),
                OUTPUT: this.outputFile,
                ERRORS: errorFile,
              },
            });
      return { ...result, stderr: readFileSync(errorFile, 'utf8').slice(before) + result.stderr };
    } finally {
      closeSync(output);
      closeSync(errors);
    }
  }

  async mustRunDetached(
    args: readonly string[],
    program: string = stasisProgram,
    variables: Readonly<Record<string, string>> = {},
  ): Promise<CommandResult> {
    const result = await this.runDetached(args, program, variables);
    if (result.exitCode !== 0) throw new Error(describeFailure(result));
    return result;
  }

  imagesDirectory(name = 'images'): string {
    return join(this.directory, name);
  }

  checkpointArgs(images: string, flags: readonly string[] = []): string[] {
    return ['checkpoint', '--image-path', images, '--work-path', `${images}.work`, ...flags, this.id];
  }

  restoreArgs(images: string, flags: readonly string[] = []): string[] {
    const work = `${images}.work`;
    return [
      'restore',
      '--detach',
      '--bundle',
      this.bundle,
      '--image-path',
      images,
      '--work-path',
      work,
      ...flags,
      this.id,
    ];
  }

  /** Checkpoints into `name` below the test's folder; the container must be gone or running, as asked. */
  async checkpoint(name = 'images', flags: readonly string[] = []): Promise<string> {
    const images = this.imagesDirectory(name);
    mkdirSync(images, { recursive: true, mode: 0o700 });
    mkdirSync(`${images}.work`, { recursive: true, mode: 0o700 });
    await this.must(this.checkpointArgs(images, flags));
    return images;
  }

  async restore(name = 'images', flags: readonly string[] = []): Promise<CommandResult> {
    return await this.mustRunDetached(this.restoreArgs(this.imagesDirectory(name), flags));
  }

  /** Checkpoint and restore, `times` in a row, each from images of its own. */
  async cycle(times = 1, flags: readonly string[] = []): Promise<void> {
    for (let round = 1; round <= times; round++) {
      const name = `images-${nextNumber()}`;
      await this.checkpoint(name, flags);
      await this.restore(
        name,
        flags.filter((flag) => flag !== '--leave-running'),
      );
    }
  }

  async state(): Promise<ContainerState> {
    const { stdout } = await this.must(['state', this.id]);
    return JSON.parse(stdout) as ContainerState;
  }

  async initPid(): Promise<number> {
    return (await this.state()).pid;
  }

  async exec(args: readonly string[], options: CommandOptions = {}): Promise<string> {
    return (await this.must(['exec', this.id, ...args], options)).stdout;
  }

  async kill(signal: string): Promise<void> {
    await this.must(['kill', this.id, signal]);
  }

  output(): string {
    return existsSync(this.outputFile) ? readFileSync(this.outputFile, 'utf8') : '';
  }

  async waitForOutput(pattern: RegExp, timeoutMs?: number): Promise<RegExpExecArray> {
    return await waitFor(`${pattern} in the output of ${this.id}`, () => pattern.exec(this.output()) ?? undefined, {
      ...(timeoutMs === undefined ? {} : { timeoutMs }),
      seen: () => JSON.stringify(this.output().slice(-500)),
    });
  }

  /** Has a self-checking target (e2e/targets) look whether all is as it was, and say so. */
  async expectOk(): Promise<void> {
    const check = join(this.rootfs, 'check');
    writeFileSync(check, '');
    const said = await this.waitForOutput(/^(OK|FAIL.*)$/ms, 30_000);
    rmSync(check);
    assert.equal(said[0], 'OK');
  }

  async waitForExit(hostPid: number, timeoutMs?: number): Promise<void> {
    await waitFor(`the end of process ${hostPid}`, () => (isAlive(hostPid) ? undefined : true), {
      ...(timeoutMs === undefined ? {} : { timeoutMs }),
      seen: () => `state ${processState(hostPid)}`,
    });
  }

  hasStateDirectory(): boolean {
    return existsSync(join(this.stateRoot, this.id));
  }

  /** Nothing of a checkpoint is visible from outside: not frozen, not stopped, not traced. */
  assertUntouched(): void {
    if (isFrozen(this.cgroupPath)) throw new Error(`the cgroup of ${this.id} is frozen`);
    const pids = processesIn(this.cgroupPath);
    if (pids.length === 0) throw new Error(`${this.id} has no processes any more`);
    for (const pid of pids) {
      const state = processState(pid);
      if (state === 'T' || state === 't') throw new Error(`process ${pid} of ${this.id} is stopped (state ${state})`);
      if (tracerOf(pid) !== 0) throw new Error(`process ${pid} of ${this.id} is traced by ${tracerOf(pid)}`);
    }
  }

  /** Ends the container, whatever state it is in; for clean-up. */
  async destroy(): Promise<void> {
    if (this.hasStateDirectory()) await this.runc(['delete', '--force', this.id]);
    for (const pid of existingProcesses(this.cgroupPath)) {
      process.kill(pid, 'SIGKILL');
      await this.waitForExit(pid);
    }
  }
}

/** crun puts containers one level deeper. */
function scopePath(slice: string, { id, base }: Pick<ContainerOptions, 'id' | 'base'>): string {
  const parts = slice.slice(0, -'.slice'.length).split('-');
  const slices = parts.map((_part, index) => `/${parts.slice(0, index + 1).join('-')}.slice`).join('');
  return `${slices}/stasis-${id}.scope${base?.endsWith('crun') === true ? '/container' : ''}`;
}

function existingProcesses(cgroupPath: string): number[] {
  return processesIn(cgroupPath).filter(isAlive);
}

let lastNumber = 0;
function nextNumber(): number {
  return ++lastNumber;
}

function environment(): Record<string, string> {
  return { PATH: process.env['PATH'] ?? '/usr/sbin:/usr/bin:/sbin:/bin' };
}
