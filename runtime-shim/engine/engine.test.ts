import assert from 'node:assert/strict';
import { Phase, type Capture, type Plan } from '../../nativecore/schema/messages.js';
import { StasisError } from '../errors/index.js';
import { compilePlan } from './compile.js';
import { decodeImages } from './decode.js';
import { describeImages } from './describe.js';
import { encodeStats } from './encode.js';
import { readImage } from '../../oci-spec/images/image-file.js';
import { printPlan, printStep } from './plan/print.js';
import { verifyPlan } from './plan/verify.js';
import { compileOptions, golden, kernel, MemoryImages, readCapture, type RecordedCapture } from './recorded.js';

function plan(name: RecordedCapture, change: (capture: Capture) => void = () => undefined): Plan {
  const capture = readCapture(name);
  change(capture);
  const images = new MemoryImages(capture);
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

/** Objections to a capture after a change, without "cannot checkpoint: ". */
function objections(name: RecordedCapture, change: (capture: Capture) => void): string[] {
  const capture = readCapture(name);
  change(capture);
  return new MemoryImages(capture).encoded.objections.map(({ message }) => message.replace('cannot checkpoint: ', ''));
}

const steps = (of: Plan, task: number, phase: number): string[] =>
  of.tasks[task]?.phases.find((candidate) => candidate.phase === phase)?.steps.map(({ op }) => op) ?? [];

function smapsWith(capture: Capture, change: (text: string) => string): void {
  const task = capture.tasks[0]!;
  task.smaps = Buffer.from(change(Buffer.from(task.smaps).toString('latin1')), 'latin1');
}

describe('the engine, from recorded captures', () => {
  it('makes userfaultfds through a device that was opened before, where it is given one', () => {
    const images = new MemoryImages(readCapture('family'));
    const options = { ...compileOptions, shellJob: true, lazyPages: true };
    const without = compilePlan(decodeImages(images), options).plan;
    const compiled = compilePlan(decodeImages(images), { ...options, userfaultfdDevice: 77 }).plan;
    verifyPlan(compiled);
    const device = compiled.externals.find(({ name }) => name === '/dev/userfaultfd');
    assert.equal(device?.descriptor, 77);
    const memoryOps = (of: Plan, op: string): number =>
      of.tasks.reduce(
        (sum, _task, index) => sum + steps(of, index, Phase.MEMORY).filter((each) => each === op).length,
        0,
      );
    assert.ok(memoryOps(without, 'userfaultfd') > 1);
    assert.equal(memoryOps(compiled, 'ioctl') - memoryOps(without, 'ioctl'), memoryOps(without, 'userfaultfd'));
    assert.equal(memoryOps(compiled, 'userfaultfd'), 0);
    const kept = (of: Plan): bigint | undefined =>
      of.tasks[0]!.phases.find(({ phase }) => phase === Phase.DESCRIPTORS)!.steps.findLast(
        ({ op }) => op === 'close_range',
      )!.args[0]!.immediate;
    assert.equal(kept(compiled), kept(without)! + 1n);
  });

  it('plans a process with threads, reduced credentials and seccomp filters', () => {
    // the digest changes with every byte of the inventory; the plan should not
    const text = printPlan({ ...plan('credentials'), imageDigest: '' });
    assert.equal(text, golden('credentials.plan.txt', text));
  });

  it('plans a family with sessions, groups, zombies and a stopped process', () => {
    const of = plan('family');
    const text = printPlan(of)
      .split('\n')
      .filter((line) => /^task |clone_process|setsid|setpgid|subreaper|exit_now/.test(line))
      .join('\n');
    assert.equal(text, golden('family.plan.txt', text));
    assert.equal(of.tasks.filter((task) => task.stopped).length, 1);
  });

  it('plans twenty threads with their timers', () => {
    const of = plan('threads');
    assert.equal(of.tasks.length, 21);
    const late = steps(of, 0, Phase.CREDENTIALS);
    assert.equal(late.filter((op) => op === 'timer_settime').length, 1);
    assert.ok(late.indexOf('timer_settime') > late.lastIndexOf('capset'));
    assert.equal(steps(of, 0, Phase.THREADS).filter((op) => op === 'clone_thread').length, 20);
  });

  it('makes the same images of the same capture', () => {
    const bytes = (): string[] =>
      new MemoryImages(readCapture('family')).encoded.files.map(
        (file) => `${file.name} ${Buffer.from(file.bytes).toString('hex')}`,
      );
    assert.deepEqual(bytes(), bytes());
  });

  it('sees in the images what was in the processes', () => {
    const description = describeImages(decodeImages(new MemoryImages(readCapture('credentials'))));
    const [process] = description.processes;
    assert.equal(process?.comm, 'creds');
    assert.equal(process?.threads, 2);
    assert.equal(process?.uid, 1000);
    assert.equal(process?.capabilities, 0x400n);
    assert.equal(process?.seccomp, true);
    assert.ok(description.memory.some(({ kind }) => kind === 'stack'));
  });

  it('finds a step by the position that the executor reports', () => {
    const of = plan('credentials');
    const phase = of.tasks[0]!.phases.find((candidate) => candidate.phase === Phase.MEMORY)!;
    const at = phase.steps.findIndex(({ op }) => op === 'munmap');
    const found = printStep(of, { task: 0, phase: Phase.MEMORY, step: at });
    assert.match(found?.line ?? '', /^p0\.\d{4} +munmap/);
    assert.equal(printStep(of, { task: 9, phase: 1, step: 0 }), undefined);
  });

  it('sizes the hole for a plan with much in it', () => {
    const of = plan('credentials', (capture) => {
      const [first] = capture.seccompFilters;
      capture.seccompFilters = Array.from({ length: 2200 }, () => ({
        flags: 0n,
        program: Buffer.concat(new Array<Uint8Array>(4096).fill(first!.program.subarray(0, 8))),
      }));
      for (const thread of capture.tasks[0]!.threads)
        thread.seccompFilters = capture.seccompFilters.map((_, index) => index);
    });
    assert.ok(of.hole!.lengthBytes > 64n << 20n);
  });
});

describe('what the engine refuses to capture', () => {
  const cases: readonly (readonly [string, (capture: Capture) => void, RegExp])[] = [
    ['a 32-bit task', (c) => (c.tasks[0]!.compat = true), /runs 32-bit code/],
    ['a shared address space', (c) => (c.tasks[0]!.sharesVm = true), /shares its memory/],
    ['shared directories', (c) => (c.tasks[0]!.sharesFs = true), /CLONE_FS/],
    ['shared signal handlers', (c) => (c.tasks[0]!.sharesSighand = true), /CLONE_SIGHAND/],
    ['a traced task', (c) => (c.tasks[0]!.ptracedBy = 77), /is traced by pid 77/],
    [
      'a stranger',
      (c) =>
        c.strangers.push({ hostPid: 99, comm: Buffer.from('sh'), cgroup: new Uint8Array(0), nsPid: new Uint8Array(0) }),
      /pid 99 \(sh\) is in the container's cgroup/,
    ],
    [
      'a security label',
      (c) => (c.tasks[0]!.threads[0]!.securityLabel = Buffer.from('docker-default (enforce)')),
      /security label/,
    ],
    ['a deadline thread', (c) => (c.tasks[0]!.threads[0]!.scheduling[4] = 6), /scheduled by deadline/],
    [
      'a notifying filter',
      (c) => c.seccompFilters[0]!.program.set([6, 0, 0, 0, 0, 0, 0xc0, 0x7f]),
      /SECCOMP_RET_USER_NOTIF/,
    ],
    [
      'a thread without registers',
      (c) => (c.tasks[0]!.threads[0]!.registers = new Uint8Array(0)),
      /no captured registers/,
    ],
    [
      'another pid namespace',
      (c) => c.tasks[0]!.namespaces.unshift({ kind: 'pid_for_children', inode: 5n, device: 4n }),
      /unshared a pid namespace/,
    ],
    [
      'a SysV segment',
      (c) =>
        smapsWith(c, (text) =>
          text.replace(/rw-p (\S+) \S+ \S+ +\[heap\]/, 'rw-s $1 00:01 32768 /SYSV00000000 (deleted)'),
        ),
      /a System V shared memory segment of an IPC namespace that is not the container's own mapped at 0x/,
    ],
    [
      'shared memory that could not be looked at',
      (c) =>
        smapsWith(c, (text) => text.replace(/rw-p (\S+) \S+ \S+ +\[heap\]/, 'rw-s $1 00:01 33 /dev/zero (deleted)')),
      /shared anonymous memory/,
    ],
    [
      'an io_uring',
      (c) =>
        smapsWith(c, (text) => text.replace(/rw-p (\S+) \S+ \S+ +\[heap\]/, 'rw-s $1 00:0d 33 anon_inode:[io_uring]')),
      /io_uring/,
    ],
    ['huge pages', (c) => smapsWith(c, (text) => text.replace('VmFlags: rd wr', 'VmFlags: ht rd wr')), /huge pages/],
    [
      'device memory',
      (c) => smapsWith(c, (text) => text.replace(/(\[heap\][^]*?VmFlags: )/, '$1io ')),
      /device memory/,
    ],
  ];
  for (const [what, change, wanted] of cases) {
    it(what, () => {
      const found = objections('credentials', change);
      assert.ok(
        found.some((message) => wanted.test(message)),
        found.join('\n'),
      );
    });
  }

  it('all of it in one pass', () => {
    const found = objections('family', (capture) => {
      capture.tasks[0]!.compat = true;
      capture.tasks[1]!.ptracedBy = 5;
      capture.tasks[2]!.sharesVm = true;
    });
    assert.equal(found.length, 3);
  });
});

describe('what the engine refuses to restore', () => {
  const decoded = (change: (images: MemoryImages) => void = () => undefined): ReturnType<typeof decodeImages> => {
    const images = new MemoryImages(readCapture('credentials'));
    change(images);
    return decodeImages(images);
  };
  const codeOf = (act: () => unknown): string => {
    try {
      act();
    } catch (error) {
      if (error instanceof StasisError) return error.code;
      throw error;
    }
    return 'nothing';
  };

  it('a set without its inventory, tree, core or memory', () => {
    for (const name of ['inventory.img', 'pstree.img', 'core-13.img', 'core-14.img', 'mm-13.img', 'ids-13.img'])
      assert.match(
        codeOf(() => decoded((images) => images.remove(name))),
        /IMAGE_(MISSING|CORRUPT)/,
        name,
      );
  });

  it('every truncation of every image, with one clear error and never a crash', () => {
    const whole = new MemoryImages(readCapture('credentials'));
    for (const name of whole
      .list()
      .filter((candidate) => candidate.endsWith('.img') && !candidate.startsWith('pages-'))) {
      const bytes = whole.read(name)!;
      for (const length of [0, 3, 7, 11, bytes.length >> 1, bytes.length - 1]) {
        if (length < 0 || length >= bytes.length) continue;
        const code = codeOf(() => {
          const model = decoded((images) => images.put({ name, bytes: bytes.subarray(0, length) }));
          const { objections: found } = compilePlan(model, { ...compileOptions, shellJob: true });
          if (found[0] !== undefined) throw found[0];
        });
        assert.match(code, /^IMAGE_|nothing/, `${name} cut to ${length} bytes`);
      }
    }
  });

  it('random damage, with one clear error and never a crash', () => {
    const whole = new MemoryImages(readCapture('credentials'));
    const names = whole.list().filter((name) => name.endsWith('.img') && !name.startsWith('pages-'));
    let seed = 1;
    const random = (limit: number): number => (seed = (seed * 1103515245 + 12345) & 0x7fffffff) % limit;
    for (let round = 0; round < 1500; round += 1) {
      const name = names[random(names.length)]!;
      const original = whole.read(name)!;
      if (original.length < 9) continue;
      const damaged = Uint8Array.from(original);
      for (let count = 1 + random(4); count > 0; count -= 1) damaged[8 + random(damaged.length - 8)] = random(256);
      whole.put({ name, bytes: damaged });
      const code = codeOf(() => {
        const compiled = compilePlan(decodeImages(whole), { ...compileOptions, shellJob: true });
        if (compiled.objections.length === 0) verifyPlan(compiled.plan);
      });
      assert.match(code, /^(IMAGE_|KERNEL_|nothing)/, `round ${round}: ${name}`);
      whole.put({ name, bytes: original });
    }
  });

  it('page data that are missing or cut short', () => {
    const found = compilePlan(
      decoded((images) => images.remove('pages-1.img')),
      { ...compileOptions, shellJob: true },
    );
    assert.deepEqual(
      found.objections.map(({ code }) => code),
      ['IMAGE_MISSING'],
    );
    const cut = compilePlan(
      decoded((images) => images.put({ name: 'pages-1.img', bytes: new Uint8Array(4096) })),
      { ...compileOptions, shellJob: true },
    );
    assert.deepEqual(
      cut.objections.map(({ code }) => code),
      ['IMAGE_CORRUPT'],
    );
  });

  it('a kernel with another vdso, a processor with fewer registers', () => {
    const found = compilePlan(decoded(), {
      ...compileOptions,
      shellJob: true,
      kernel: { ...kernel, vdsoSpanBytes: 0x6000n },
    });
    assert.match(found.objections[0]?.message ?? '', /another vdso/);
    const small = compilePlan(decoded(), {
      ...compileOptions,
      shellJob: true,
      kernel: { ...kernel, xsaveSizeBytes: 576, xfeatures: 3n },
    });
    assert.ok(small.objections.every(({ code }) => code === 'KERNEL_FEATURE_MISSING'));
    assert.ok(small.objections.length > 0);
  });

  it('capabilities and limits beyond its own, by narrowing them', () => {
    const limits = Array.from({ length: 16 }, () => ({ cur: 100n, max: 100n }));
    const { degradations } = compilePlan(decoded(), {
      ...compileOptions,
      shellJob: true,
      kernel: { ...kernel, capabilities: 0n, rlimits: limits },
    });
    const codes = new Set(degradations.map(({ code }) => code));
    assert.ok(codes.has('CAPABILITIES_NARROWED') && codes.has('RLIMIT_NARROWED'));
  });
});

describe('statistics', () => {
  it('have the form of the format', () => {
    const file = encodeStats({
      dump: {
        freezingUs: 1,
        frozenUs: 2,
        memoryReadUs: 3,
        memoryWriteUs: 4,
        pagesScanned: 5n,
        pagesWritten: 6n,
        pagesSkipped: 7n,
      },
    });
    assert.equal(file.name, 'stats-dump');
    const [entry] = readImage('stats-dump', file.bytes);
    assert.equal((entry!.message as { dump: { frozen_time: number } }).dump.frozen_time, 2);
  });
});
