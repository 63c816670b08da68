// Two network namespaces with a cable between them: one for a container, which
// joins it by path, one for who talks to it. Held by processes, so that nothing
// is mounted.
import { spawn, type ChildProcess } from 'node:child_process';
import { readlinkSync } from 'node:fs';
import { join } from 'node:path';
import { targetDirectory } from './paths.js';
import { mustRun } from './run.js';
import { isAlive } from './processes.js';
import type { StreamTarget } from './stream-client.js';
import type { TestBed } from './test-bed.js';
import { waitFor } from './wait.js';

export const kInnerAddress = '10.77.0.1';
export const kOuterAddress = '10.77.0.2';

export class TwoNetworks {
  readonly #holders: readonly ChildProcess[];

  private constructor(holders: readonly ChildProcess[]) {
    this.#holders = holders;
  }

  /** There until the test ends. */
  static async openFor(bed: TestBed): Promise<TwoNetworks> {
    const networks = new TwoNetworks([hold(), hold()]);
    bed.onClose(async () => await networks.#close());
    const [inner, outer] = [networks.#pid(0), networks.#pid(1)];
    for (const pid of [inner, outer])
      await waitFor('a network namespace', () =>
        readlinkSync(`/proc/${pid}/ns/net`) === readlinkSync('/proc/self/ns/net') ? undefined : true,
      );
    await networks.inside('ip', [
      'link',
      'add',
      'cable',
      'type',
      'veth',
      'peer',
      'name',
      'cable',
      'netns',
      String(outer),
    ]);
    await networks.inside('ip', ['address', 'add', `${kInnerAddress}/24`, 'dev', 'cable']);
    await networks.outside('ip', ['address', 'add', `${kOuterAddress}/24`, 'dev', 'cable']);
    for (const enter of [networks.inside, networks.outside])
      for (const link of ['lo', 'cable']) await enter('ip', ['link', 'set', link, 'up']);
    return networks;
  }

  /** For a container's config.json. */
  get innerPath(): string {
    return `/proc/${this.#pid(0)}/ns/net`;
  }

  /** Words before a command that is to run in the outer network. */
  get enterOuter(): readonly string[] {
    return ['nsenter', `--net=/proc/${this.#pid(1)}/ns/net`];
  }

  /** Whence and where to for a client of a server in the inner network. */
  get fromOuter(): Pick<StreamTarget, 'enter' | 'address'> {
    return { enter: this.enterOuter, address: kInnerAddress };
  }

  readonly inside = async (program: string, args: readonly string[]): Promise<string> =>
    (await mustRun('nsenter', [`--net=${this.innerPath}`, program, ...args])).stdout;

  readonly outside = async (program: string, args: readonly string[]): Promise<string> =>
    (await mustRun(this.enterOuter[0]!, [...this.enterOuter.slice(1), program, ...args])).stdout;

  /** Tables in the inner network that drop packets of connections, ours or CRIU's. */
  async locks(): Promise<number> {
    const listed = await this.inside(join(targetDirectory, 'nft_tables'), []);
    return listed.split('\n').filter((name) => /^(stasis|CRIU)-/.test(name)).length;
  }

  async #close(): Promise<void> {
    for (const holder of this.#holders) {
      holder.kill('SIGKILL');
      await waitFor('the end of a network namespace', () => (isAlive(holder.pid!) ? undefined : true));
    }
  }

  #pid(which: 0 | 1): number {
    return this.#holders[which]!.pid!;
  }
}

function hold(): ChildProcess {
  return spawn('unshare', ['--net', 'sleep', '10000'], { stdio: 'ignore' });
}
