import assert from 'node:assert/strict';
import { Phase, type Capture, type Plan } from '../../../nativecore/schema/messages.js';
import { compilePlan } from '../compile.js';
import { decodeImages } from '../decode.js';
import { ImageSetReader, ImageSetWriter } from '../image-set.js';
import { printStep } from '../plan/print.js';
import { verifyPlan } from '../plan/verify.js';
import { parentPages } from './page-map.js';
import { compileOptions, MemoryImages, readCapture, somePages } from '../recorded.js';
import { statx } from './file-fixture.js';
import { sharedObjects } from './shared-objects.js';

const kDevice = 1n;
const kInode = 33n;
const kPage = 4096n;

interface SharedPart {
  readonly task: number;
  readonly offset: bigint;
  readonly permissions: string;
}

/** An anonymous mapping of some tasks becomes a mapping of one shared object. */
function withShared(parts: readonly SharedPart[], link = '/dev/zero (deleted)'): Capture {
  const capture = readCapture('family');
  const stat = statx({ device: kDevice, inode: kInode, mode: 0o100777, sizeBytes: 64n * kPage });
  capture.sharedMemory = [{ link: Buffer.from(link), stat, seals: 1 }];
  for (const { task, offset, permissions } of parts) {
    const raw = capture.tasks[task]!;
    const text = Buffer.from(raw.smaps).toString('latin1');
    const found = /^([0-9a-f]+)-([0-9a-f]+) rw-p 00000000 00:00 0 *$/m.exec(text)!;
    const line = `${found[1]}-${found[2]} ${permissions} ${offset.toString(16).padStart(8, '0')} 00:01 ${kInode} ${link}`;
    raw.smaps = Buffer.from(text.replace(found[0], line), 'latin1');
    raw.mappedFiles = [
      ...raw.mappedFiles,
      { start: BigInt(`0x${found[1]}`), link: Buffer.from(link), stat, linkMode: 0o600, pathMatches: false },
    ];
  }
  return capture;
}

function imagesOf(
  capture: Capture,
  runs = [{ address: 2n * kPage, pageCount: 3n }],
  unchangedRuns: typeof runs = [],
): MemoryImages {
  const images = new MemoryImages(capture, {
    ...somePages(capture),
    shared: [{ object: 0, pagesId: 77, runs, unchangedRuns }],
  });
  images.put({ name: 'pages-77.img', bytes: new Uint8Array(Number(3n * kPage)) });
  return images;
}

function planOf(images: MemoryImages): Plan {
  assert.deepEqual(
    images.encoded.objections.map(({ message }) => message),
    [],
  );
  const compiled = compilePlan(decodeImages(images), { ...compileOptions, shellJob: true });
  assert.deepEqual(
    compiled.objections.map(({ message }) => message),
    [],
  );
  verifyPlan(compiled.plan);
  return compiled.plan;
}

/** Lines of the printed plan that come from shared memory, without their numbers. */
function lines(plan: Plan, task: number, phase: number, pattern: RegExp): string[] {
  const steps = plan.tasks[task]!.phases.find((candidate) => candidate.phase === phase)?.steps ?? [];
  return steps.flatMap((_, step) => {
    const line = printStep(plan, { task, phase, step })?.line.replace(/^\S+ +/, '') ?? '';
    return pattern.test(line) ? [line.replace(/ +/g, ' ')] : [];
  });
}

describe('shared memory', () => {
  const two: readonly SharedPart[] = [
    { task: 0, offset: 0n, permissions: 'rw-s' },
    { task: 1, offset: kPage, permissions: 'r--s' },
  ];

  it('is made once by the root task and mapped by each of the others out of that', () => {
    const plan = planOf(imagesOf(withShared(two)));
    const scratch = plan.hole!.address + plan.hole!.lengthBytes;
    const made = lines(plan, 0, Phase.FILES, /mmap/);
    assert.equal(made.length, 1);
    assert.match(made[0]!, new RegExp(`mmap.*0x${scratch.toString(16)}`));
    for (const { task, offset, permissions } of two) {
      const mapped = lines(plan, task, Phase.MEMORY, /mremap/);
      assert.equal(mapped.length, 1);
      assert.match(mapped[0]!, new RegExp(`mremap.*0x${(scratch + offset).toString(16)}`));
      const narrowed = lines(plan, task, Phase.MEMORY, /mprotect/);
      assert.equal(narrowed.length, permissions === 'rw-s' ? 0 : 1);
    }
    // all of them inherit it, and none may keep it
    plan.tasks.forEach((task, index) => {
      if (task.kind !== 0) return;
      const phase = index === 0 ? Phase.THREADS : Phase.MEMORY;
      assert.equal(lines(plan, index, phase, /munmap.*where shared memory was made/).length, 1);
    });
  });

  it('is filled through the root task, not through userfaultfd', () => {
    const plan = planOf(imagesOf(withShared(two)));
    const scratch = plan.hole!.address + plan.hole!.lengthBytes;
    const fills = plan.tasks.flatMap((task, index) =>
      task.fills.filter(({ pageFile }) => plan.pageFiles[pageFile] === 'pages-77.img').map((fill) => ({ index, fill })),
    );
    assert.deepEqual(fills, [
      {
        index: 0,
        fill: {
          method: 1,
          address: scratch + 2n * kPage,
          pageCount: 3n,
          pageFile: plan.pageFiles.indexOf('pages-77.img'),
          fileOffsetBytes: 0n,
        },
      },
    ]);
  });

  it('is as large as what is mapped of it, or as its last page says', () => {
    const mapped = planOf(imagesOf(withShared(two), [])).tasks[0]!;
    const beyond = planOf(imagesOf(withShared(two), [{ address: 1000n * kPage, pageCount: 3n }])).tasks[0]!;
    const size = ({ phases }: Plan['tasks'][number]): bigint =>
      phases.find(({ phase }) => phase === Phase.FILES)!.steps.findLast(({ op }) => op === 'mmap')!.args[1]!.immediate!;
    assert.equal(size(beyond), 1003n * kPage);
    assert.ok(size(mapped) < 1003n * kPage);
  });

  it('is understood as older releases of CRIU write it', () => {
    const images = imagesOf(withShared(two));
    const set = new ImageSetReader(images);
    const written = new ImageSetWriter();
    for (const name of images.list()) {
      const pid = Number(/^mm-(\d+)\.img$/.exec(name)?.[1]);
      if (!Number.isInteger(pid)) continue;
      const mm = set.one('mm', pid);
      const old = { shmid: kInode, status: 0x101, flags: 0x21 };
      written.add('mm', pid, {
        ...mm,
        vmas: mm.vmas.map((vma) => ((vma.status & 0x4000) === 0 ? vma : { ...vma, ...old })),
      });
    }
    const before = planOf(images);
    for (const file of written.files()) images.put(file);
    images.remove('memfd.img');
    const plan = planOf(images);
    for (const { task } of two)
      assert.equal(
        lines(plan, task, Phase.MEMORY, /mremap/).length,
        lines(before, task, Phase.MEMORY, /mremap/).length,
      );
    assert.equal(lines(plan, 0, Phase.FILES, /memfd_create/).length, 0);
  });

  it('of a memfd is mapped from descriptors, read-only ones from one that cannot write, and sealed last', () => {
    const capture = withShared(two, '/memfd:name (deleted)');
    capture.sharedMemory[0]!.seals = 0x0e;
    for (const { task, permissions } of two) {
      const raw = capture.tasks[task]!;
      const text = Buffer.from(raw.smaps).toString('latin1');
      const writable = permissions === 'rw-s' ? 'mw' : '';
      raw.smaps = Buffer.from(
        text.replace(/(memfd:name[^]*?VmFlags: )[^\n]*/, `$1rd mr ${writable} me sh ms`),
        'latin1',
      );
    }
    const plan = planOf(imagesOf(capture));
    assert.deepEqual(lines(plan, 0, Phase.FILES, /memfd_create|ftruncate/).length, 2);
    const mapped = two.map(({ task }) =>
      plan.tasks[task]!.phases.find(({ phase }) => phase === Phase.MEMORY)!
        .steps.filter(({ op, args }) => op === 'mmap' && ((args[3]?.immediate ?? 0n) & 1n) !== 0n)
        .map(({ args }) => args[4]?.slot),
    );
    assert.equal(mapped.flat().length, 2);
    assert.notEqual(mapped[0]![0], mapped[1]![0]);
    const reopened = lines(plan, 0, Phase.FILES, /openat .*name/);
    assert.equal(reopened.length, 1);
    // filled through the root task; then the seals; then the descriptors that were kept for it
    const last = lines(plan, 0, Phase.CREDENTIALS, /F_ADD_SEALS|close_range/);
    assert.equal(last.length, 2);
    assert.match(last[0]!, /F_ADD_SEALS/);
    assert.equal(
      plan.tasks[0]!.fills.filter(({ method, pageFile }) => method === 1 && plan.pageFiles[pageFile] === 'pages-77.img')
        .length,
      1,
    );
  });

  it('has a number of its own in the images when a segment has the same inode number', () => {
    const capture = withShared(two);
    capture.sharedMemory.push({
      link: Buffer.from('/SYSV00000000 (deleted)'),
      stat: statx({ device: kDevice, inode: kInode }),
      seals: 1,
    });
    assert.deepEqual(
      sharedObjects(capture).map(({ kind, shmid }) => [kind, shmid]),
      [
        ['anonymous', 34n],
        ['segment', 33n],
      ],
    );
  });

  it('is found in the parent where it reads the same, whichever has the page', () => {
    const capture = withShared(two);
    const parent = imagesOf(capture, [{ address: 2n * kPage, pageCount: 3n }]);
    const child = imagesOf(
      capture,
      [{ address: 3n * kPage, pageCount: 1n }],
      [
        { address: 2n * kPage, pageCount: 1n },
        { address: 4n * kPage, pageCount: 1n },
      ],
    );
    const flags = new ImageSetReader(child).entries('pagemap-shmem', kInode).map(({ message }) => message.flags);
    assert.deepEqual(flags.slice(1), [1, 4, 1]);
    child.before = parent;
    const plan = planOf(child);
    const shared = plan.tasks[0]!.fills.map((fill) => [plan.pageFiles[fill.pageFile], fill.fileOffsetBytes]).filter(
      ([file]) => String(file).endsWith('pages-77.img'),
    );
    assert.deepEqual(shared, [
      ['parent/pages-77.img', 0n],
      ['pages-77.img', 0n],
      ['parent/pages-77.img', 2n * kPage],
    ]);
    const { objects, files } = parentPages(new ImageSetReader(parent));
    assert.deepEqual(
      objects.map(({ number, runs }) => [number, runs.map(({ pageCount, file }) => [pageCount, files[file]])]),
      [[kInode, [[3n, 'pages-77.img']]]],
    );
  });

  it('is refused when its pages are missing, out of order or at a parent', () => {
    const objectionsTo = (change: (images: MemoryImages) => void, runs?: Parameters<typeof imagesOf>[1]): string[] => {
      const images = imagesOf(withShared(two), runs);
      change(images);
      return compilePlan(decodeImages(images), { ...compileOptions, shellJob: true }).objections.map(
        ({ code, message }) => `${code} ${message}`,
      );
    };
    assert.match(objectionsTo((images) => images.remove('pages-77.img')).join('\n'), /IMAGE_MISSING.*pages-77/);
    assert.match(
      objectionsTo((images) => images.put({ name: 'pages-77.img', bytes: new Uint8Array(4096) })).join('\n'),
      /IMAGE_CORRUPT.*pages-77.*truncated/,
    );
    assert.match(
      objectionsTo(
        () => undefined,
        [
          { address: 4n * kPage, pageCount: 1n },
          { address: 0n, pageCount: 1n },
        ],
      ).join('\n'),
      /IMAGE_CORRUPT.*pagemap-shmem-33.*not in order/,
    );
    assert.match(
      objectionsTo(() => undefined, [{ address: 0n, pageCount: 1n << 40n }]).join('\n'),
      /IMAGE_CORRUPT.*pagemap-shmem-33/,
    );
  });
});
