// podman with everything of its own below one folder: storage, state, volumes,
// configuration; the runtime is an installed stasis, and so is the criu that
// podman looks for.
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { withoutSignatures } from './archives.js';
import { cgroupDirectories, hasController } from './cgroups.js';
import { countOn } from './counting.js';
import { managersDirectory } from './paths.js';
import { chosenPodman, type PodmanSet } from './podman-sets.js';
import { processesWhere, readOrEmpty } from './processes.js';
import { makeRootfs } from './rootfs.js';
import { describeFailure, mustRun, run, type CommandResult } from './run.js';
import { managersUseSystemd } from './systemd.js';
import { waitFor } from './wait.js';

/** Where hack/managers installs stasis. */
export const installedPrefix = join(managersDirectory, 'stasis');

/** Lines of containers.conf, by section. */
export interface PodmanSettings {
  readonly containers?: readonly string[];
  readonly engine?: readonly string[];
}

// Its defaults raise hard limits, which a root without CAP_SYS_RESOURCE cannot do.
function configuration(set: PodmanSet, settings: PodmanSettings = {}): string {
  const lines = [
    '[containers]',
    ...(settings.containers ?? []),
    'default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]',
    'log_driver = "k8s-file"',
    // A default limit needs the controller for it.
    ...(hasController('pids') ? [] : ['pids_limit = 0']),
    '[engine]',
    ...(settings.engine ?? []),
    `cgroup_manager = "${managersUseSystemd() ? 'systemd' : 'cgroupfs'}"`,
    'events_logger = "file"',
    `conmon_path = ["${set.conmon}"]`,
  ];
  if (set.helpers !== undefined) {
    // nftables need not be there; iptables come with podman 4's plugins.
    lines.push(`helper_binaries_dir = ${JSON.stringify(set.helpers)}`, '[network]', 'firewall_driver = "iptables"');
  }
  return `${lines.join('\n')}\n`;
}

/** Prints numbers, and ends on SIGTERM. */
export const counter = 'trap "exit 7" TERM; n=0; while :; do n=$((n + 1)); echo $n; sleep 0.02; done';

/** Where podman keeps what nobody told it to keep elsewhere, and what configures it then. */
const systemStorage = '/var/lib/containers';
const systemConfiguration = '/etc/containers';

export class Podman {
  readonly directory: string;
  readonly set = chosenPodman();
  readonly #runtime: string;
  readonly #criuDirectory: string;
  readonly #hadNamespaces = isMountPoint(namespaceDirectory);
  /** podman refuses names of more than 50 characters here. */
  readonly #runDirectory = mkdtempSync(join(tmpdir(), 'stasis-podman-'));
  /** Mounts that make a host of its own of the system's places, the last one first; empty: it has other places. */
  readonly #systemMounts: string[] = [];
  #typed = 0;

  private constructor(directory: string, runtime: string, criuDirectory: string) {
    this.directory = directory;
    this.#runtime = runtime;
    this.#criuDirectory = criuDirectory;
  }

  /**
   * One that is configured as docs/managers.md says, by files in /etc, and keeps its storage where it does by itself, so
   * that what systemd starts finds its containers. Only in a mount namespace of the lane's own.
   */
  static async openForSystem(directory: string): Promise<Podman> {
    const podman = new Podman(directory, 'stasis', join(installedPrefix, 'bin'));
    mkdirSync(directory, { recursive: true });
    try {
      await podman.#takeSystemPlaces();
      await podman.#importBox();
    } catch (error) {
      await podman.close();
      throw error;
    }
    return podman;
  }

  async #takeSystemPlaces(): Promise<void> {
    const over = join(this.#runDirectory, 'over');
    mkdirSync(over);
    for (const place of [systemStorage, systemConfiguration, over]) mkdirSync(place, { recursive: true });
    for (const place of [over, systemStorage]) {
      await mustRun('mount', ['-t', 'tmpfs', '-o', 'mode=755', 'none', place]);
      this.#systemMounts.unshift(place);
    }
    for (const name of ['upper', 'work']) mkdirSync(join(over, name));
    const layers = `lowerdir=${systemConfiguration},upperdir=${over}/upper,workdir=${over}/work`;
    await mustRun('mount', ['-t', 'overlay', '-o', layers, 'overlay', systemConfiguration]);
    this.#systemMounts.unshift(systemConfiguration);
    const engine = ['runtime = "stasis"', 'runtime_supports_json = ["stasis", "crun", "runc"]'];
    const runtimes = `[engine.runtimes]\nstasis = ["${join(installedPrefix, 'bin/stasis')}"]\n`;
    const text = configuration(this.set, { engine }) + runtimes;
    writeFileSync(join(systemConfiguration, 'containers.conf'), text);
  }

  /** Has an image "box" made of busybox. `programs`: the runtime, below the installed prefix; or two of others. */
  static async open(
    directory: string,
    programs: string | { readonly runtime: string; readonly criuDirectory: string } = 'bin/stasis',
    settings: PodmanSettings = {},
  ): Promise<Podman> {
    const podman =
      typeof programs === 'string'
        ? new Podman(directory, join(installedPrefix, programs), join(installedPrefix, 'bin'))
        : new Podman(directory, programs.runtime, programs.criuDirectory);
    mkdirSync(directory, { recursive: true });
    writeFileSync(join(directory, 'containers.conf'), configuration(podman.set, settings));
    await podman.#importBox();
    return podman;
  }

  async #importBox(): Promise<void> {
    const rootfs = join(this.directory, 'box');
    await makeRootfs('busybox', rootfs);
    await mustRun('tar', ['-C', rootfs, '-cf', `${rootfs}.tar`, '.']);
    await this.must('import', `${rootfs}.tar`, 'box');
  }

  async run(...words: readonly string[]): Promise<CommandResult> {
    return await run(this.set.podman, [...this.#globals(), ...words], {
      env: this.#environment(),
    });
  }

  async must(...words: readonly string[]): Promise<string> {
    const result = await this.run(...words);
    if (result.exitCode !== 0) throw new Error(describeFailure(result));
    return result.stdout.trimEnd();
  }

  /** The image in an OCI archive, whose id is returned. */
  async pullArchive(archive: string): Promise<string> {
    return await this.must('pull', '--quiet', ...withoutSignatures(this.directory), `oci-archive:${archive}`);
  }

  /** Starts a counter that is called `name`. */
  async start(name: string, ...options: readonly string[]): Promise<void> {
    const network = options.some((word) => word === '--network' || word === '--pod') ? [] : ['--network', 'none'];
    await this.must('run', '-d', '--name', name, ...network, ...options, 'box', 'sh', '-c', counter);
    await this.count(name);
  }

  /** Waits until the counter has gone on, and returns all that the log has of it. */
  async count(name: string): Promise<readonly number[]> {
    return await countOn(name, () => this.must('logs', name));
  }

  /** Types a command into a shell on a container's terminal, and returns what it has printed when it is done. */
  async type(name: string, command: string): Promise<string> {
    const answer = `/root/answer-${(this.#typed += 1)}`;
    // A shell moves a file that is complete; braces leave its variables to it.
    const line = `{ ${command}; } >${answer}.new; mv ${answer}.new ${answer}\n`;
    let said = '';
    await this.feed(name, line, async () => {
      const { exitCode, stdout } = await this.run('exec', name, 'cat', answer);
      said = stdout.trimEnd();
      return exitCode === 0;
    });
    return said;
  }

  /** Gives text to a container's standard input, and waits until it is seen to have arrived. */
  async feed(name: string, text: string, hasArrived: () => Promise<boolean>): Promise<void> {
    const attach = ['attach', '--sig-proxy=false', '--no-stdin=false', name];
    const attached = spawn(this.set.podman, [...this.#globals(), ...attach], {
      stdio: ['pipe', 'ignore', 'ignore'],
      env: this.#environment(),
    });
    const ended = new Promise((resolve) => attached.once('close', resolve));
    try {
      attached.stdin.write(text);
      await waitFor(`${name} to read ${JSON.stringify(text)}`, async () => ((await hasArrived()) ? true : undefined));
    } finally {
      // podman would stay attached for ever.
      attached.kill('SIGKILL');
      await ended;
    }
  }

  async inspect(name: string, format: string): Promise<string> {
    return await this.must('inspect', name, '--format', format);
  }

  /** What conmon and the runtime have written for podman to read. */
  async runtimeLog(name: string): Promise<string> {
    const path = join(
      this.#runDirectory,
      'overlay-containers',
      await this.inspect(name, '{{.Id}}'),
      'userdata/oci-log',
    );
    return existsSync(path) ? readFileSync(path, 'utf8') : '';
  }

  async imagesDirectory(name: string): Promise<string> {
    return join(this.directory, 'root/overlay-containers', await this.inspect(name, '{{.Id}}'), 'userdata/checkpoint');
  }

  /** Nothing of any container is left: neither in podman's view nor on the host. */
  async assertNothingLeft(ids: readonly string[]): Promise<void> {
    const left = await this.must('ps', '-a', '--format', '{{.Names}}');
    if (left !== '') throw new Error(`containers are left: ${left}`);
    for (const id of ids) {
      for (const root of ['/run/runc', '/run/crun'])
        if (existsSync(join(root, id))) throw new Error(`the state of ${id} is left in ${root}`);
      await waitFor(`the cgroups of ${id} to go`, () => (cgroupsOf(id).length === 0 ? true : undefined), {
        seen: () => cgroupsOf(id).join(', '),
      });
    }
  }

  async close(): Promise<void> {
    await this.run('pod', 'rm', '-f', '-t', '0', '-a');
    await this.run('rm', '-f', '-t', '0', '-a');
    await this.run('volume', 'rm', '-f', '-a');
    // What conmon starts when a container has ended (podman container cleanup) mounts the storage once more.
    await waitFor("podman's own cleaning up to end", () => (this.#processes().length === 0 ? true : undefined));
    // podman 5 binds the directory of network namespaces to itself, once.
    if (!this.#hadNamespaces) await run('umount', [namespaceDirectory]);
    // podman keeps its storage mounted.
    await run('umount', [
      '-R',
      join(this.#isForSystem() ? `${systemStorage}/storage` : join(this.directory, 'root'), 'overlay'),
    ]);
    for (const place of this.#systemMounts) await mustRun('umount', [place]);
    rmSync(this.#runDirectory, { recursive: true, force: true });
  }

  #isForSystem(): boolean {
    return this.#systemMounts.length > 0;
  }

  #processes(): number[] {
    const mark = this.#isForSystem() ? `${systemStorage}/storage` : this.directory;
    return processesWhere((pid) => pid !== process.pid && readOrEmpty(`/proc/${pid}/cmdline`).includes(mark));
  }

  #environment(): Record<string, string> {
    return {
      PATH: `${this.#criuDirectory}:/usr/sbin:/usr/bin:/sbin:/bin`,
      ...(this.#isForSystem() ? {} : { CONTAINERS_CONF: join(this.directory, 'containers.conf') }),
      HOME: this.directory,
      PODMAN_IGNORE_CGROUPSV1_WARNING: '1',
    };
  }

  #globals(): string[] {
    if (this.#isForSystem()) return [];
    const below = (name: string): string => join(this.directory, name);
    return [
      '--root',
      below('root'),
      '--runroot',
      this.#runDirectory,
      '--tmpdir',
      below('tmp'),
      '--runtime',
      this.#runtime,
    ];
  }
}

const namespaceDirectory = '/run/netns';

function isMountPoint(path: string): boolean {
  return readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .some((line) => line.split(' ')[4] === path);
}

/** Directories of any hierarchy that carry the container's id. */
function cgroupsOf(id: string): string[] {
  const inScopes = [`libpod-${id}.scope`, `libpod-conmon-${id}.scope`].map((name) => `/machine.slice/${name}`);
  return [`/libpod_parent/libpod-${id}`, ...inScopes].flatMap(cgroupDirectories);
}
