// containerd with everything of its own below one folder: content, snapshots,
// state, sockets; the runtime behind its shim is an installed stasis.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Daemon, daemonEnvironment, daemonProgram, installedStasis } from './daemon.js';
import { makeImage } from './oci-layout.js';
import { makeRootfs } from './rootfs.js';
import { cgroupParent } from './run-identity.js';
import { describeFailure, run, type CommandResult } from './run.js';
import { managersUseSystemd } from './systemd.js';
import { waitFor } from './wait.js';

/** Counts into its root file system and on its output. */
export const countingInside = 'n=0; while :; do n=$((n + 1)); echo $n >>/count; echo $n; sleep 0.02; done';

export const boxImage = 'docker.io/library/box:latest';

/** Of its scopes, ctr-ID.scope, where systemd makes them. */
export const containerdSlice = 'stasistest-containerd.slice';

const withoutCri = ['grpc.v1.cri', 'cri.v1.images', 'cri.v1.runtime'];
const unused = ['nri.v1.nri', 'snapshotter.v1.btrfs', 'snapshotter.v1.devmapper', 'snapshotter.v1.erofs'];

export class Containerd {
  /** Short: names of sockets may have 107 bytes. */
  readonly directory = mkdtempSync(join(tmpdir(), 'stasis-containerd-'));
  readonly socket = join(this.directory, 'c.sock');
  #daemon: Daemon | undefined;

  /** Has an image made of busybox; `cri`: the lines that configure its CRI service, which is off without. */
  static async open(options: { readonly namespace?: string; readonly cri?: string } = {}): Promise<Containerd> {
    const containerd = new Containerd();
    try {
      await containerd.#start(options.cri);
      await containerd.#importImage(options.namespace ?? 'default');
    } catch (error) {
      await containerd.close();
      throw error;
    }
    return containerd;
  }

  async #start(cri: string | undefined): Promise<void> {
    const { directory, socket } = this;
    const disabled = [...(cri === undefined ? withoutCri : []), ...unused].map((name) => `io.containerd.${name}`);
    const configuration = [
      'version = 3',
      `root = "${directory}/root"`,
      `state = "${directory}/state"`,
      `temp = "${directory}/tmp"`,
      `disabled_plugins = ${JSON.stringify(disabled)}`,
      `[grpc]\n  address = "${socket}"`,
      `[ttrpc]\n  address = "${socket}.ttrpc"`,
      cri ?? '',
    ];
    mkdirSync(join(directory, 'tmp'));
    const configurationFile = join(directory, 'config.toml');
    writeFileSync(configurationFile, configuration.join('\n'));
    this.#daemon = await Daemon.start(daemonProgram('containerd'), ['--config', configurationFile], {
      logFile: join(directory, 'containerd.log'),
      directory,
      answers: async () => (await this.ctr('version')).exitCode === 0,
    });
  }

  async #importImage(namespace: string): Promise<void> {
    const rootfs = join(this.directory, 'box');
    const archive = `${rootfs}.tar`;
    await makeRootfs('busybox', rootfs);
    await makeImage(rootfs, boxImage, archive);
    await this.must('--namespace', namespace, 'image', 'import', archive);
  }

  async ctr(...words: readonly string[]): Promise<CommandResult> {
    return await run(daemonProgram('ctr'), ['--address', this.socket, ...words], { env: daemonEnvironment() });
  }

  async must(...words: readonly string[]): Promise<string> {
    const result = await this.ctr(...words);
    if (result.exitCode !== 0) throw new Error(`${describeFailure(result)}\n${this.lastLogLines()}`);
    return result.stdout.trimEnd();
  }

  lastLogLines(): string {
    return this.#daemon?.log().split('\n').slice(-6).join('\n') ?? '';
  }

  /** `ctr run` of a shell script, with output to a file. */
  async start(id: string, script: string, ...options: readonly string[]): Promise<void> {
    await this.must(
      ...(['run', '--detach', '--snapshotter', 'native', '--log-uri', `file://${this.logFile(id)}`] as const),
      ...['--runc-binary', installedStasis, '--runc-root', join(this.directory, 'runc')],
      ...(managersUseSystemd()
        ? ['--runc-systemd-cgroup', '--cgroup', `${containerdSlice}:ctr:${id}`]
        : ['--cgroup', `${cgroupParent}/${id}`]),
      ...['--cpu-shares', '0', ...options, boxImage, id, 'sh', '-c', script],
    );
  }

  logFile(id: string): string {
    return join(this.directory, `${id}.log`);
  }

  /** What a task is, in containerd's words. */
  async task(id: string): Promise<{ readonly pid: number; readonly status: string } | undefined> {
    for (const line of (await this.must('task', 'ls')).split('\n').slice(1)) {
      const [name, pid, status] = line.trim().split(/\s+/);
      if (name === id) return { pid: Number(pid), status: status ?? '' };
    }
    return undefined;
  }

  async exec(id: string, ...words: readonly string[]): Promise<string> {
    return await this.must('task', 'exec', '--exec-id', `x${process.hrtime.bigint()}`, id, ...words);
  }

  /** Waits until the counter inside has gone on, and returns all that it has counted. */
  async count(id: string): Promise<readonly number[]> {
    const numbers = async (): Promise<number[]> =>
      (await this.exec(id, 'cat', '/count')).split('\n').filter(Boolean).map(Number);
    const before = (await numbers().catch(() => [])).length;
    return await waitFor(`${id} to count on`, async () => {
      const now = await numbers().catch(() => []);
      return now.length > before ? now : undefined;
    });
  }

  /** Content that no image holds goes at once. */
  async collectGarbage(namespace: string): Promise<void> {
    await this.must('--namespace', namespace, 'leases', 'create', '--id', 'collect');
    await this.must('--namespace', namespace, 'leases', 'delete', '--sync', 'collect');
  }

  async remove(id: string): Promise<void> {
    await this.ctr('task', 'kill', '--signal', 'KILL', id);
    await waitFor(`${id} to end`, async () => ((await this.task(id))?.status === 'RUNNING' ? undefined : true));
    await this.ctr('task', 'rm', '--force', id);
    await this.must('container', 'rm', id);
  }

  async close(): Promise<void> {
    if (this.#daemon !== undefined) {
      for (const id of (await this.must('container', 'ls', '--quiet')).split('\n').filter(Boolean))
        await this.remove(id);
      await this.#daemon.stop();
    }
    rmSync(this.directory, { recursive: true, force: true });
  }
}
