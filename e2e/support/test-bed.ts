// What every privileged test stands on: a folder of its own, containers that
// are gone afterwards, and a look at what the test left behind. Called inside
// a describe block; nothing happens behind the tests' back.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { removeCgroups } from './cgroups.js';
import { Container, type ContainerOptions } from './container.js';
import { laneName } from './lanes.js';
import { findLeaks, takePicture, type HostPicture } from './leaks.js';
import { artefactDirectory, repository } from './paths.js';
import { cgroupParent } from './run-identity.js';

type BedOptions = Omit<ContainerOptions, 'directory' | 'id'> & { readonly id?: string };

export class TestBed {
  #directory = '';
  readonly #containers: Container[] = [];
  readonly #closing: (() => Promise<void>)[] = [];

  /** The folder of the running test. */
  get directory(): string {
    return this.#directory;
  }

  async prepare(options: BedOptions): Promise<Container> {
    const container = await Container.prepare({ id: 'c1', ...options, directory: this.#directory });
    this.#containers.push(container);
    return container;
  }

  async start(options: BedOptions): Promise<Container> {
    const container = await this.prepare(options);
    await container.mustRunDetached(['run', '--detach', '--bundle', container.bundle, container.id]);
    return container;
  }

  open(title: string): void {
    this.#directory = join(artefactDirectory, laneName(), slug(title));
    rmSync(this.#directory, { recursive: true, force: true });
    mkdirSync(this.#directory, { recursive: true });
  }

  /** For what a test started besides containers; called before anybody looks for what is left. */
  onClose(action: () => Promise<void>): void {
    this.#closing.push(action);
  }

  async close(): Promise<void> {
    for (const action of this.#closing.splice(0).reverse()) await action();
    for (const container of this.#containers.splice(0)) await container.destroy();
  }

  discard(): void {
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

export function useTestBed(): TestBed {
  const bed = new TestBed();
  let before: HostPicture;

  beforeEach(function () {
    bed.open(this.currentTest?.fullTitle() ?? 'test');
    before = takePicture();
  });

  afterEach(async function () {
    this.timeout(60_000);
    const test = this.currentTest;
    const failed = test?.state === 'failed';
    if (failed) keepEvidence(bed.directory, test?.fullTitle() ?? '');
    await bed.close();
    const leaks = await findLeaks(before, bed.directory);
    if (!failed && leaks.length === 0) bed.discard();
    if (leaks.length > 0) throw new Error(`"${test?.fullTitle()}" left something behind:\n  ${leaks.join('\n  ')}`);
  });

  after(() => removeCgroups(cgroupParent));

  return bed;
}

/** Kept for whoever looks at the failure: the folder, the kernel's last words, the processes. */
function keepEvidence(directory: string, title: string): void {
  const shell = (command: string): string => execFileSync('sh', ['-c', command], { encoding: 'utf8' });
  if (!existsSync(directory)) return;
  writeFileSync(join(directory, 'dmesg.txt'), shell('dmesg 2>/dev/null | tail -n 40'));
  writeFileSync(join(directory, 'processes.txt'), shell('ps -eo pid,ppid,stat,wchan:20,comm'));
  console.log(`      artefacts: ${relative(repository, directory)}`);
  console.log(`      repeat:    hack/test ${laneName()} -g ${JSON.stringify(title)}`);
}

function slug(title: string): string {
  return title
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-')
    .slice(0, 80);
}
