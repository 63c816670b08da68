// dockerd with everything of its own below one folder, a containerd of its own
// included; its default runtime is an installed stasis.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Daemon, daemonEnvironment, daemonProgram, installedStasis } from './daemon.js';
import { makeRootfs } from './rootfs.js';
import { cgroupParent } from './run-identity.js';
import { describeFailure, mustRun, run, type CommandResult } from './run.js';
import { countOn } from './wait.js';

/** What a person writes into /etc/docker/daemon.json, and what keeps it off this host's network and storage. */
function configuration(directory: string): object {
  return {
    experimental: true,
    'default-runtime': 'stasis',
    runtimes: { stasis: { path: installedStasis } },
    iptables: false,
    ip6tables: false,
    bridge: 'none',
    'userland-proxy': false,
    'storage-driver': 'vfs',
    'exec-opts': ['native.cgroupdriver=cgroupfs'],
    'cgroup-parent': cgroupParent,
    'data-root': join(directory, 'data'),
    'exec-root': join(directory, 'exec'),
    pidfile: join(directory, 'pid'),
    hosts: [`unix://${join(directory, 'd.sock')}`],
  };
}

export class Docker {
  /** Short: names of sockets may have 107 bytes. */
  readonly directory = mkdtempSync(join(tmpdir(), 'stasis-docker-'));
  #daemon: Daemon | undefined;

  /** Has an image "box" made of busybox. */
  static async open(): Promise<Docker> {
    const docker = new Docker();
    try {
      await docker.#start();
      const rootfs = join(docker.directory, 'box');
      await makeRootfs('busybox', rootfs);
      await mustRun('tar', ['-C', rootfs, '-cf', `${rootfs}.tar`, '.']);
      await docker.must('import', `${rootfs}.tar`, 'box');
    } catch (error) {
      await docker.close();
      throw error;
    }
    return docker;
  }

  async #start(): Promise<void> {
    const { directory } = this;
    const configurationFile = join(directory, 'daemon.json');
    writeFileSync(configurationFile, JSON.stringify(configuration(directory), undefined, 2));
    this.#daemon = await Daemon.start(daemonProgram('dockerd'), ['--config-file', configurationFile], {
      logFile: join(directory, 'dockerd.log'),
      directory,
      answers: async () => (await this.run('version')).exitCode === 0,
    });
  }

  async run(...words: readonly string[]): Promise<CommandResult> {
    const env = { ...daemonEnvironment(), HOME: this.directory };
    return await run(daemonProgram('docker'), ['--host', `unix://${join(this.directory, 'd.sock')}`, ...words], {
      env,
    });
  }

  async must(...words: readonly string[]): Promise<string> {
    const result = await this.run(...words);
    if (result.exitCode !== 0) throw new Error(describeFailure(result));
    return result.stdout.trimEnd();
  }

  /** Waits until the log has more lines of the counter, and returns all. */
  async count(name: string): Promise<readonly number[]> {
    return await countOn(name, () => this.must('logs', name));
  }

  async inspect(name: string, format: string): Promise<string> {
    return await this.must('inspect', '--format', format, name);
  }

  /** What `docker start --checkpoint` stumbles over in dockerd's own containerd: it puts there what is there already. */
  async forgetCheckpoints(): Promise<void> {
    const socket = join(this.directory, 'exec/containerd/containerd.sock');
    const ctr = async (...words: readonly string[]): Promise<void> =>
      void (await mustRun(daemonProgram('ctr'), ['--address', socket, '--namespace', 'moby', ...words]));
    await ctr('leases', 'create', '--id', 'collect');
    await ctr('leases', 'delete', '--sync', 'collect');
  }

  async close(): Promise<void> {
    if (this.#daemon !== undefined) {
      const ids = (await this.must('ps', '--all', '--quiet')).split('\n').filter(Boolean);
      if (ids.length > 0) await this.must('rm', '--force', ...ids);
      await this.#daemon.stop();
      // dockerd keeps the network namespace of --network host mounted.
      for (const mount of mountsBelow(this.directory)) await mustRun('umount', [mount]);
    }
    rmSync(this.directory, { recursive: true, force: true });
  }
}

function mountsBelow(directory: string): string[] {
  return readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .map((line) => line.split(' ')[4] ?? '')
    .filter((mount) => mount.startsWith(`${directory}/`));
}
