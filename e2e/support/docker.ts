// dockerd with everything of its own below one folder, a containerd of its own
// included; its default runtime is an installed stasis.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Daemon, daemonEnvironment, daemonProgram, installedStasis } from './daemon.js';
import { makeRootfs } from './rootfs.js';
import { cgroupParent } from './run-identity.js';
import { describeFailure, mustRun, run, type CommandResult } from './run.js';
import { managersUseSystemd } from './systemd.js';
import { countOn } from './counting.js';

/** Of its scopes, docker-ID.scope, where systemd makes them. */
export const dockerSlice = 'stasistest-docker.slice';

/** A bridge is in a network namespace of the daemon's own; without, it keeps off the host's network. */
const withoutBridge = { iptables: false, ip6tables: false, bridge: 'none' };

/** What a person writes into /etc/docker/daemon.json, and what keeps it off this host's network and storage. */
function configuration(directory: string, bridge: boolean): object {
  return {
    experimental: true,
    'default-runtime': 'stasis',
    runtimes: { stasis: { path: installedStasis } },
    ...(bridge ? {} : withoutBridge),
    'userland-proxy': false,
    'storage-driver': 'vfs',
    'exec-opts': [`native.cgroupdriver=${managersUseSystemd() ? 'systemd' : 'cgroupfs'}`],
    'cgroup-parent': managersUseSystemd() ? dockerSlice : cgroupParent,
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
  static async open({ bridge = false } = {}): Promise<Docker> {
    const docker = new Docker();
    try {
      await docker.#start(bridge);
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

  async #start(bridge: boolean): Promise<void> {
    const { directory } = this;
    const configurationFile = join(directory, 'daemon.json');
    writeFileSync(configurationFile, JSON.stringify(configuration(directory, bridge), undefined, 2));
    this.#daemon = await Daemon.start(daemonProgram('dockerd'), ['--config-file', configurationFile], {
      logFile: join(directory, 'dockerd.log'),
      directory,
      ownNetwork: bridge,
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

  /** What a web server on the daemon's own network answers: "172.17.0.2:80/file". */
  async fetch(url: string): Promise<CommandResult> {
    const [, host, port, path] = /^(.+):(\d+)(\/.*)$/.exec(url) ?? [];
    const request = 'exec 3<>/dev/tcp/$0/$1 && printf "GET %s HTTP/1.0\\r\\n\\r\\n" "$2" >&3 && sed "1,/^\\r\\$/d" <&3';
    const network = ['--target', String(this.#daemon!.pid), '--net'];
    return await run('nsenter', [...network, 'bash', '-c', request, host!, port!, path!], { timeoutMs: 5000 });
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
