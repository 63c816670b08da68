// Incremental checkpoints: pre-dumps of a container that runs, a last round that
// writes what has changed, and a restore from all of them together.
import assert from 'node:assert/strict';
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import type { Container } from '../support/container.js';
import { processState, processesWhere, readOrEmpty } from '../support/processes.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';

interface Result {
  readonly remarks: readonly string[];
  readonly pages: { readonly written: number; readonly leftToParent: number };
}

/** Of the memory that the target leaves alone, in its two processes. */
const kStillPages = (2 * (48 << 20)) / 4096;

/** A memfd, anonymous memory and a segment of its shared kind; some 500 of these pages change. */
const kStillSharedPages = ((64 << 20) + 2 * (16 << 20)) / 4096 - 600;

/** For want of a keeper. */
const kCompared =
  /^no note was kept of what changed since the parent checkpoint: \d+ of \d+ pages that were compared .* are equal/m;

describe('incremental checkpoints', () => {
  const bed = useTestBed();

  it('write what has changed since the parent, and are restored together with it', async () => {
    const container = await start();
    const first = await preDump(container, 'one');
    assert.ok(first.pages.written > kStillPages && first.pages.leftToParent === 0, JSON.stringify(first.pages));
    const second = await preDump(container, 'two', 'one');
    assertLittle(second);
    const pid = await container.initPid();
    assert.equal(keepersOf(pid).length, 1);
    const last = await checkpoint(container, 'three', ['--parent-path', '../two']);
    assertLittle(last);
    assert.equal(readlinkSync(join(container.imagesDirectory('three'), 'parent')), '../two');
    await expectNoKeeper(pid);
    await container.restore('three');
    await container.expectOk();
  });

  it('go on in a chain of snapshots, of which any is restored', async () => {
    const container = await start();
    await checkpoint(container, 'one', ['--leave-running']);
    // Of the first nobody has kept note: the second begins a chain, by comparison.
    const second = await checkpoint(container, 'two', ['--leave-running', '--parent-path', '../one']);
    assertLittle(second);
    assert.match(second.remarks.join('\n'), kCompared);
    for (const [name, parent] of [
      ['three', '../two'],
      ['four', '../three'],
    ] as const)
      assertLittle(await checkpoint(container, name, ['--leave-running', '--parent-path', parent]));
    await container.must(['delete', '--force', container.id]);
    await container.restore('three');
    await container.must(['delete', '--force', container.id]);
    await container.restore('four');
    await container.expectOk();
  });

  it('are made round by round with --iterate', async () => {
    const container = await start();
    const result = await checkpoint(container, 'images', ['--iterate']);
    assertLittle(result);
    const images = container.imagesDirectory('images');
    assert.match((await container.must(['inspect', images])).stdout, /MiB of it left to earlier checkpoints/);
    const { pages } = JSON.parse((await container.must(['inspect', '--json', images])).stdout) as {
      readonly pages: { readonly ofParentsBytes: string };
    };
    assert.ok(Number(pages.ofParentsBytes) >= kStillPages * 4096, JSON.stringify(pages));
    assert.match(
      (await container.must(['verify', images])).stdout,
      /: sound: .* earlier ones? that it leaves pages to$/m,
    );
    const packed = await container.stasis(['pack', '--to', 'criu', '--output', `${images}.tar`, images]);
    assert.equal(packed.exitCode, 3);
    assert.match(packed.stderr, /it is an incremental checkpoint, whose memory is in \d+ other director/);
    await container.restore('images');
    await container.expectOk();
  });

  it('lack nothing when the process that keeps note of changes was killed', async () => {
    const container = await start();
    await preDump(container, 'one');
    const pid = await container.initPid();
    assert.equal(keepersOf(pid).length, 1);
    for (const keeper of keepersOf(pid)) process.kill(keeper, 'SIGKILL');
    await expectNoKeeper(pid);
    const last = await checkpoint(container, 'two', ['--parent-path', '../one']);
    assertLittle(last);
    assert.match(last.remarks.join('\n'), kCompared);
    await container.restore('two');
    await container.expectOk();
  });

  for (const codec of ['lz4', 'zstd'])
    it(`leave pages to a parent that is compressed with ${codec}`, async () => {
      const container = await start();
      await checkpoint(container, 'one', ['--leave-running', '--compress', codec]);
      const last = await checkpoint(container, 'two', ['--parent-path', '../one', '--compress', codec]);
      assertLittle(last);
      assert.match(last.remarks.join('\n'), kCompared);
      await container.restore('two');
      await container.expectOk();
    });

  it('write of shared memory what has changed, whoever has written it', async () => {
    const container = await start('shared_mostly_still');
    const first = await preDump(container, 'one');
    assert.ok(first.pages.written > kStillSharedPages, JSON.stringify(first.pages));
    const second = await preDump(container, 'two', 'one');
    assertLittle(second, kStillSharedPages);
    // The same content is everywhere but in the first page file.
    assert.ok(pageFileBytes(container.imagesDirectory('two')) < 3000 * 4096);
    const third = await checkpoint(container, 'three', ['--leave-running', '--parent-path', '../two']);
    assertLittle(third, kStillSharedPages);
    const last = await checkpoint(container, 'four', ['--parent-path', '../three']);
    assertLittle(last, kStillSharedPages);
    await container.restore('three');
    await container.expectOk();
    await container.must(['delete', '--force', container.id]);
    await container.restore('four');
    await container.expectOk();
  });

  it('are refused when the parent that they were compared with has been altered', async () => {
    const container = await start();
    await checkpoint(container, 'one', ['--leave-running']);
    assertLittle(await checkpoint(container, 'two', ['--parent-path', '../one']));
    const pages = join(container.imagesDirectory('one'), 'pages-1.img');
    const bytes = readFileSync(pages);
    const middle = bytes.length >> 1;
    bytes[middle] = bytes[middle]! ^ 1;
    writeFileSync(pages, bytes);
    const images = container.imagesDirectory('two');
    const { exitCode, stderr } = await container.stasis(container.restoreArgs(images));
    assert.notEqual(exitCode, 0);
    assert.match(stderr, /"parent\/pages-1.img" is not the file that was written/);
    const verified = await container.stasis(['verify', images]);
    assert.equal(verified.exitCode, 6);
    assert.match(verified.stderr, /where .*\/one\/pages-1.img$/m);
    bytes[middle] = bytes[middle]! ^ 1;
    writeFileSync(pages, bytes);
    await container.restore('two');
    await container.expectOk();
  });

  it('say in one sentence what is wrong with their parent', async () => {
    const container = await start();
    await preDump(container, 'one');
    const refused = async (args: readonly string[], why: RegExp): Promise<void> => {
      const { exitCode, stderr } = await container.stasis(args);
      assert.notEqual(exitCode, 0);
      assert.match(stderr, why);
      assert.equal(stderr.trim().split('\n').length, 1, stderr);
    };
    const images = container.imagesDirectory('two');
    mkdirSync(`${images}.work`, { recursive: true });
    await refused(container.checkpointArgs(images, ['--parent-path', '../nowhere']), /there is no such directory/);
    await refused(
      container.checkpointArgs(images, ['--parent-path', '../../../../etc']),
      /a parent checkpoint lies below/,
    );
    await checkpoint(container, 'two', ['--parent-path', '../one']);
    const one = container.imagesDirectory('one');
    mkdirSync(`${one}.work`, { recursive: true });
    await refused(container.restoreArgs(one), /of a pre-dump, which has the memory only/);

    renameSync(one, `${one}.away`);
    await refused(
      container.restoreArgs(images),
      /leaves the page at 0x[0-9a-f]+ to its parent checkpoint, which is not there/,
    );
    // Somebody else's memory, under the parent's name.
    cpSync(images, one, { recursive: true });
    rmSync(join(one, 'parent'), { force: true });
    await refused(container.restoreArgs(images), /is not the one that it was made with/);
    rmSync(one, { recursive: true });
    const elsewhere = mkdtempSync(join(dirname(bed.directory), 'elsewhere-'));
    try {
      cpSync(`${one}.away`, elsewhere, { recursive: true });
      rmSync(join(images, 'parent'));
      symlinkSync(elsewhere, join(images, 'parent'));
      await refused(container.restoreArgs(images), /lies outside of/);
    } finally {
      rmSync(elsewhere, { recursive: true });
    }
    rmSync(join(images, 'parent'));
    symlinkSync('../one', join(images, 'parent'));
    renameSync(`${one}.away`, one);
    await container.restore('two');
    await container.expectOk();
  });

  async function start(target = 'mostly_still'): Promise<Container> {
    const container = await bed.start({
      args: [`/targets/${target}`],
      targets: [target],
      adjust: (spec) => {
        delete spec.process.rlimits;
      },
    });
    await container.waitForOutput(/READY|FAIL.*/);
    return container;
  }

  const preDump = (container: Container, name: string, parent?: string): Promise<Result> =>
    checkpoint(container, name, ['--pre-dump', ...(parent === undefined ? [] : ['--parent-path', `../${parent}`])]);

  async function checkpoint(container: Container, name: string, flags: readonly string[]): Promise<Result> {
    const images = container.imagesDirectory(name);
    mkdirSync(`${images}.work`, { recursive: true });
    const { stdout } = await container.must(container.checkpointArgs(images, [...flags, '--json']));
    return JSON.parse(stdout) as Result;
  }

  /** What changes is 3 MiB at most in each process, besides stacks and the like. */
  function assertLittle({ pages }: Result, still = kStillPages): void {
    assert.ok(pages.written < 3000, `${pages.written} pages were written`);
    assert.ok(pages.leftToParent >= still - 3000, `${pages.leftToParent} pages were left to the parent`);
  }

  const pageFileBytes = (images: string): number =>
    readdirSync(images)
      .filter((name) => /^pages-[0-9]+\.img$/.test(name))
      .reduce((sum, name) => sum + statSync(join(images, name)).size, 0);

  const keepersOf = (initPid: number): number[] =>
    processesWhere(
      (pid) =>
        readOrEmpty(`/proc/${pid}/comm`) === 'stasis-keeper\n' &&
        processState(pid) !== 'Z' &&
        readOrEmpty(`/proc/${pid}/cmdline`).split('\0')[2] === String(initPid),
    );

  async function expectNoKeeper(initPid: number): Promise<void> {
    await waitFor('the keeper to be gone', () => (keepersOf(initPid).length === 0 ? true : undefined));
  }
});
