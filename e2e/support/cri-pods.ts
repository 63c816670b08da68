// Pods and containers of containerd's CRI service, made as the kubelet makes them.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { hasController } from './cgroups.js';
import { boxImage, Containerd, countingInside } from './containerd.js';
import { Cri, namespaceMode } from './cri.js';
import { installedStasis } from './daemon.js';
import { requires, type Need } from './lanes.js';
import { makeLayout } from './oci-layout.js';
import { openFor } from './open-manager.js';
import type { Registry } from './registry.js';
import { makeRootfs } from './rootfs.js';
import { cgroupParent } from './run-identity.js';
import { managersUseSystemd } from './systemd.js';
import type { TestBed } from './test-bed.js';
import { waitFor } from './wait.js';
import { assertWithoutGap } from './counting.js';

/** Of the pods' scopes, cri-containerd-ID.scope, where systemd makes them. */
export const criSlice = 'stasistest-cri.slice';

const criConfiguration = (hosts: string): string => `
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'native'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '${boxImage}'
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = '${hosts}'
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = 'linux/amd64'
  snapshotter = 'native'
[plugins.'io.containerd.cri.v1.runtime']
  # Lowering it needs CAP_SYS_RESOURCE.
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = 'stasis'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.stasis]
  runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.stasis.options]
  BinaryName = '${installedStasis}'
  SystemdCgroup = ${managersUseSystemd()}
`;

export interface Pod {
  readonly pod_sandbox_id: unknown;
  readonly sandbox_config: { readonly metadata: { readonly name: string } };
}

const linux = {
  security_context: {
    namespace_options: { network: namespaceMode.node, pid: namespaceMode.container, ipc: namespaceMode.pod },
  },
};

/** What `config_path` names: for each registry, where it is to be asked. */
const hostsIn = (bed: TestBed): string => join(bed.directory, 'hosts');

export class CriPods {
  /** Of this machine, once containerd has been asked. */
  static #refusal: string | undefined;

  private constructor(
    readonly bed: TestBed,
    readonly containerd: Containerd,
    readonly cri: Cri,
  ) {}

  /** Of a containerd for the test that begins, which is skipped where the lane has not what it `needs`, or no pods. */
  static async openFor(context: Mocha.Context, bed: TestBed, ...more: readonly Need[]): Promise<CriPods> {
    const needs = ['daemons', ...more] as const;
    requires(context, 'root', 'built', ...needs);
    CriPods.#skipWhereRefused(context);
    const configuration = { namespace: 'k8s.io', cri: criConfiguration(hostsIn(bed)) };
    const containerd = await openFor(context, bed, needs, () => Containerd.open(configuration));
    const cri = new Cri(containerd.socket);
    bed.onClose(async () => cri.close());
    const pods = new CriPods(bed, containerd, cri);
    if (!hasController('cpu')) CriPods.#refusal = await pods.#refusalOfPods();
    CriPods.#skipWhereRefused(context);
    return pods;
  }

  static #skipWhereRefused(context: Mocha.Context): void {
    if (CriPods.#refusal === undefined) return;
    console.log(`      skipped: no CPU controller is here, and containerd says: ${CriPods.#refusal}`);
    context.skip();
  }

  get hosts(): string {
    return hostsIn(this.bed);
  }

  /** A pod, which is gone after the test with all that is in it. */
  async startPod(name: string): Promise<Pod> {
    const sandbox_config = {
      metadata: { name, uid: `${name}-uid`, namespace: 'default', attempt: 0 },
      log_directory: this.containerd.directory,
      linux: { cgroup_parent: managersUseSystemd() ? criSlice : cgroupParent, ...linux },
    };
    const { pod_sandbox_id } = await this.cri.call('RunPodSandbox', { config: sandbox_config });
    this.bed.onClose(async () => {
      await this.cri.call('StopPodSandbox', { pod_sandbox_id });
      await this.cri.call('RemovePodSandbox', { pod_sandbox_id });
    });
    return { pod_sandbox_id, sandbox_config };
  }

  /** containerd gives every pod CPU shares, and has no option not to: what it says where nobody can set them. */
  async #refusalOfPods(): Promise<string | undefined> {
    try {
      await this.startPod('shares');
      return undefined;
    } catch (error) {
      const { message } = error as Error;
      if (/cpu\.weight: no such file or directory$/.test(message)) return message;
      throw error;
    }
  }

  /** `image`: of a name that was pulled or imported, or the path of an archive. */
  async startContainer(pod: Pod, image: string, config: object = {}): Promise<string> {
    const { name } = pod.sandbox_config.metadata;
    const { container_id } = await this.cri.call('CreateContainer', {
      ...pod,
      config: {
        metadata: { name: 'counter', attempt: 0 },
        image: { image },
        log_path: `${name}.log`,
        linux,
        ...config,
      },
    });
    await this.cri.call('StartContainer', { container_id });
    return String(container_id);
  }

  /** An image of busybox, which the registry is given; its name is returned. */
  async pullBox(registry: Registry): Promise<string> {
    const rootfs = join(this.bed.directory, 'box');
    await makeRootfs('busybox', rootfs);
    // Nothing of it is in containerd's store by way of the other image.
    writeFileSync(join(rootfs, 'etc/motd'), 'from a registry\n');
    const layout = join(this.bed.directory, 'layout');
    await makeLayout(rootfs, 'box', layout);
    const image = registry.add('box', '1', layout);
    await this.cri.call('PullImage', { image: { image } });
    return image;
  }

  async startCounter(script = countingInside, image: string = boxImage): Promise<string> {
    return await this.startContainer(await this.startPod('pod'), image, { command: ['sh', '-c', script] });
  }

  async count(container_id: string): Promise<number> {
    const { stdout } = await this.cri.call('ExecSync', { container_id, cmd: ['cat', '/count'], timeout: 10 });
    const numbers = Buffer.from(stdout as Uint8Array)
      .toString()
      .split('\n')
      .filter(Boolean)
      .map(Number);
    assertWithoutGap(numbers);
    return numbers.length;
  }

  /** Returns how far it had come. */
  async countsOn(id: string): Promise<number> {
    const before = await this.count(id);
    await waitFor('the container to count on', async () => ((await this.count(id)) > before ? true : undefined));
    return before;
  }

  async remove(container_id: string): Promise<void> {
    await this.cri.call('StopContainer', { container_id, timeout: 0 });
    await this.cri.call('RemoveContainer', { container_id });
  }
}
