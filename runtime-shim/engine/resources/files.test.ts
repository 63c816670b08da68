import assert from 'node:assert/strict';
import type { PathReference } from '../../../nativecore/schema/messages.js';
import { Phase } from '../plan/builder.js';
import type { ImageModel } from '../compile-context.js';
import { StasisError } from '../../errors/index.js';
import type { file_entry } from '../../../oci-spec/images/messages.js';
import { FileFixture, objectionsOf, statx, stepsOf } from './file-fixture.js';

const kPipeFs = 0x50495045n;
const pipeStat = (inode: bigint): { mode: number; inode: bigint; filesystemMagic: bigint } => ({
  mode: 0o10600,
  inode,
  filesystemMagic: kPipeFs,
});
const anonymous = { mode: 0o600, inode: 7n };

function u32(...values: number[]): Buffer {
  const bytes = Buffer.alloc(4 * values.length);
  values.forEach((value, index) => bytes.writeUInt32LE(value >>> 0, 4 * index));
  return bytes;
}

function attribute(type: number, data: Uint8Array): Buffer {
  const bytes = Buffer.alloc(4 + ((data.length + 3) & ~3));
  bytes.writeUInt16LE(4 + data.length, 0);
  bytes.writeUInt16LE(type, 2);
  bytes.set(data, 4);
  return bytes;
}

/** A unix_diag reply; see unix-socket.ts for the layout. */
function unixDiag(
  inode: number,
  type: number,
  state: number,
  more: { name?: string; peer?: number; pending?: number[]; backlog?: number; shutdown?: number } = {},
): Buffer {
  const parts = [Buffer.from([1, type, state, 0]), u32(inode, 0, 0)];
  if (more.name !== undefined) parts.push(attribute(0, Buffer.from(more.name)));
  if (more.peer !== undefined) parts.push(attribute(2, u32(more.peer)));
  if (more.pending !== undefined) parts.push(attribute(3, u32(...more.pending)));
  if (more.backlog !== undefined) parts.push(attribute(4, u32(0, more.backlog)));
  parts.push(attribute(6, Buffer.from([more.shutdown ?? 0])));
  return Buffer.concat(parts);
}

function withUnixSockets(...unixSockets: Buffer[]): FileFixture {
  const network = { inode: 101n, links: [] };
  return new FileFixture({ netNamespaces: [{ ...network, unixSockets }] });
}

function unixSocket(
  fixture: FileFixture,
  inode: number,
  type: number,
  more: { name?: string; queue?: Buffer[]; boundFile?: PathReference } = {},
): number {
  const family = Buffer.from([1, 0]);
  return fixture.open({
    link: `socket:[${inode}]`,
    stat: { mode: 0o140777, inode: BigInt(inode) },
    socket: {
      inode: BigInt(inode),
      family: 1,
      type,
      localAddress: more.name === undefined ? family : Buffer.concat([family, Buffer.from(more.name)]),
      queue: more.queue ?? [],
      boundFile: more.boundFile,
    },
  });
}

function tcpSocket(fixture: FileFixture, state: number, local: Buffer, peer: Uint8Array = new Uint8Array(0)): number {
  const info = Buffer.alloc(104);
  info[0] = state;
  info.writeUInt32LE(77, 28);
  return fixture.open({
    link: 'socket:[30]',
    statusFlags: 0o4002,
    stat: { mode: 0o140777, inode: 30n },
    socket: {
      inode: 30n,
      family: 2,
      type: 1,
      protocol: 6,
      localAddress: local,
      peerAddress: peer,
      tcpInfo: info,
      options: [{ level: 1, name: 2, value: u32(1) }],
    },
  });
}

function inet4(port: number): Buffer {
  const address = Buffer.alloc(16);
  address.writeUInt16LE(2, 0);
  address.writeUInt16BE(port, 2);
  address.set([127, 0, 0, 1], 4);
  return address;
}

/** The one file through all stages, and what the root task does for it. */
function stepsFor(fixture: FileFixture, index: number): string[] {
  fixture.task({ nsPid: 1, fds: { 5: index } });
  const steps = stepsOf(fixture.compile(), 1, Phase.FILES);
  // The first three hold the root directory, the last two move the file to its high number.
  return steps.slice(3, -2);
}

/** Images that nobody of ours wrote. */
function withFile(fixture: FileFixture, change: (entry: file_entry) => file_entry): ImageModel {
  const model = fixture.model(fixture.encode());
  return { ...model, files: new Map([...model.files].map(([id, entry]) => [id, change(entry)])) };
}

describe('open files', () => {
  it('opens a regular file at its offset below the root of the namespace', () => {
    const fixture = new FileFixture();
    const file = fixture.open({
      link: '/var/log/app.log',
      statusFlags: 0o102001,
      fdinfo: 'pos:\t20480\n',
      stat: { inode: 9n, sizeBytes: 30000n },
    });
    fixture.task({ nsPid: 1, fds: { 5: file } });
    const ctx = fixture.encode();
    const [entry] = fixture
      .model(ctx)
      .set.messages('files')
      .filter((candidate) => candidate.reg?.name === '/var/log/app.log');
    assert.equal(entry?.reg?.pos, 20480n);
    assert.equal(entry.reg.size, 30000n);
    assert.equal(entry.reg.mnt_id, 20);
    const steps = stepsOf(fixture.compile(), 1, Phase.DESCRIPTORS).slice(1);
    assert.match(steps[0] ?? '', /^openat2 s2 "\/var\/log\/app.log" </);
    assert.equal(steps[1], 'dup3 s3 5 0');
    assert.equal(steps[2], 'close s3');
    assert.equal(steps[3], 'lseek 5 20480 0');
  });

  it('opens a file of two descriptors once, in the root task, and holds it', () => {
    const fixture = new FileFixture();
    const file = fixture.open({ link: '/var/log/app.log', fdinfo: 'pos:\t20480\n' });
    fixture.task({ nsPid: 1, fds: { 5: file, 6: file } });
    const steps = stepsOf(fixture.compile(), 1, Phase.FILES).slice(3);
    assert.match(steps[0] ?? '', /^openat2 s2 "\/var\/log\/app.log" </);
    assert.deepEqual(steps.slice(1), ['lseek s3 20480 0', 'dup3 s3 129 524288', 'close s3']);
  });

  it('never opens with flags that create or cut', () => {
    const fixture = new FileFixture();
    const file = fixture.open({ link: '/f', statusFlags: 0o1 | 0o100 | 0o200 | 0o1000 | 0o2000 });
    fixture.task({ nsPid: 1, fds: { 0: file } });
    const [, open] = stepsOf(fixture.compile(), 1, Phase.DESCRIPTORS);
    const flags = Buffer.from(/<([0-9a-f]+)>/.exec(open ?? '')?.[1] ?? '', 'hex').readUInt32LE(0);
    assert.equal(flags & (0o100 | 0o200 | 0o1000), 0);
    assert.equal(flags & 0o2000, 0o2000);
  });

  it('refuses a deleted file by process, number and path', () => {
    const fixture = new FileFixture();
    const file = fixture.open({ link: '/tmp/x (deleted)', pathMatches: false, stat: { linkCount: 0, sizeBytes: 12n } });
    fixture.task({ nsPid: 1, comm: 'nginx', fds: { 7: file } });
    const ctx = fixture.encode();
    assert.deepEqual(objectionsOf(ctx), [
      'fd 7 of pid 1001 (container pid 1) (nginx) is the deleted file "/tmp/x" (12 bytes), whose content is in no image',
    ]);
    assert.equal(ctx.objections[0]?.subject.targetFd, 7);
  });

  it('inherits a standard stream that is a file outside of the container', () => {
    const fixture = new FileFixture();
    const file = fixture.open({ link: '/host/out.log', pathMatches: false, statusFlags: 0o100001 });
    fixture.task({ nsPid: 1, fds: { 1: file, 2: file } });
    const ctx = fixture.encode({ externalFiles: new Set(['/host/out.log']) });
    assert.deepEqual(objectionsOf(ctx), []);
    const plan = fixture.compile({ inherited: new Map([['/host/out.log', 11]]) }, fixture.model(ctx));
    assert.deepEqual(stepsOf(plan, 1, Phase.FILES).slice(3), ['dup3 s3 129 524288']);
    assert.deepEqual(plan.plan.message('').externals, [{ name: '/host/out.log', slot: 3, descriptor: 11 }]);
    assert.match(
      objectionsOf(fixture.compile({}, fixture.model(ctx)))[0] ?? '',
      /"\/host\/out.log" was outside the container/,
    );
  });

  it('restores a pipe with unread bytes, its capacity and both ends', () => {
    const fixture = new FileFixture({
      pipes: [{ inode: 40n, capacityBytes: 131072, content: Buffer.from('unread'), isFifo: false }],
    });
    const read = fixture.open({ link: 'pipe:[40]', statusFlags: 0, stat: pipeStat(40n) });
    const write = fixture.open({ link: 'pipe:[40]', statusFlags: 0o4001, stat: pipeStat(40n) });
    fixture.task({ nsPid: 1, fds: { 3: read, 4: write } });
    assert.deepEqual(stepsOf(fixture.compile(), 1, Phase.FILES).slice(3), [
      'pipe2 <> 526336',
      'load <> 0 4',
      'load <> 4 4',
      'fcntl s4 1031 131072',
      `write s4 <${Buffer.from('unread').toString('hex')}> 6`,
      'fcntl s3 4 0',
      'dup3 s3 129 524288',
      'close s3',
      'fcntl s4 4 2048',
      'dup3 s4 130 524288',
      'close s4',
    ]);
  });

  it('opens a second description of the same pipe end through /proc/self/fd', () => {
    const fixture = new FileFixture();
    const first = fixture.open({ link: 'pipe:[40]', statusFlags: 0, stat: pipeStat(40n) });
    const second = fixture.open({ link: 'pipe:[40]', statusFlags: 0o4000, stat: pipeStat(40n) });
    fixture.task({ nsPid: 1, fds: { 3: first, 4: second } });
    const steps = stepsOf(fixture.compile(), 1, Phase.FILES);
    assert.ok(steps.includes('openat -100 "/proc/self/fd/129" 526336 0'), steps.join('\n'));
  });

  it('inherits a pipe whose other side is outside, and leaves its bytes there', () => {
    const fixture = new FileFixture({
      pipes: [{ inode: 40n, capacityBytes: 65536, content: Buffer.from('theirs'), isFifo: false }],
    });
    const write = fixture.open({ link: 'pipe:[40]', statusFlags: 1, stat: pipeStat(40n) });
    fixture.task({ nsPid: 1, fds: { 1: write } });
    const ctx = fixture.encode({ externalFiles: new Set(['pipe:[40]']) });
    assert.deepEqual(ctx.degradations, []);
    assert.equal(fixture.model(ctx).set.raw('pipes-data.img'), undefined);
    const plan = fixture.compile({ inherited: new Map([['pipe:[40]', 11]]) }, fixture.model(ctx));
    assert.deepEqual(stepsOf(plan, 1, Phase.FILES).slice(3), ['dup3 s3 129 524288']);
  });

  it('notes a pipe whose other end nobody in the tree has', () => {
    const fixture = new FileFixture();
    const write = fixture.open({ link: 'pipe:[40]', statusFlags: 1, stat: pipeStat(40n) });
    fixture.task({ nsPid: 1, fds: { 1: write } });
    assert.equal(fixture.encode().degradations[0]?.code, 'PIPE_WITHOUT_PEER');
  });

  it('opens a FIFO for both directions before its own', () => {
    const fixture = new FileFixture({
      pipes: [{ inode: 41n, capacityBytes: 65536, content: Buffer.from('in'), isFifo: true }],
    });
    const fifo = fixture.open({ link: '/run/ctl', statusFlags: 0, stat: { mode: 0o10644, inode: 41n } });
    const steps = stepsFor(fixture, fifo);
    assert.match(steps[0] ?? '', /^openat2 s2 "\/run\/ctl" <0209/);
    assert.equal(steps[1], 'write s3 <696e> 2');
    assert.match(steps[4] ?? '', /^openat2 s2 "\/run\/ctl" <0009/);
    assert.equal(steps[5], 'fcntl s5 4 0');
  });

  it('restores an eventfd with count, flags and semaphore mode', () => {
    const fixture = new FileFixture();
    const event = fixture.open({
      link: 'anon_inode:[eventfd]',
      statusFlags: 0o4002,
      stat: anonymous,
      fdinfo: 'eventfd-count:               1f\neventfd-semaphore: 1\n',
    });
    assert.deepEqual(stepsFor(fixture, event), ['eventfd2 31 2049']);
  });

  it('writes an eventfd count of more than 32 bits', () => {
    const fixture = new FileFixture();
    const event = fixture.open({
      link: 'anon_inode:[eventfd]',
      stat: anonymous,
      fdinfo: 'eventfd-count: fffffffffffffffe\n',
    });
    assert.deepEqual(stepsFor(fixture, event), ['eventfd2 0 0', 'write s3 <feffffffffffffff> 8']);
  });

  it('restores a signalfd with its mask', () => {
    const fixture = new FileFixture();
    const signal = fixture.open({
      link: 'anon_inode:[signalfd]',
      stat: anonymous,
      fdinfo: 'sigmask:\t0000000000000200\n',
    });
    assert.deepEqual(stepsFor(fixture, signal), ['signalfd4 -1 <0002000000000000> 8 0']);
  });

  it('arms a timerfd with what was left, then gives it its unread ticks', () => {
    const fixture = new FileFixture();
    const timer = fixture.open({
      link: 'anon_inode:[timerfd]',
      stat: anonymous,
      fdinfo: 'clockid: 1\nticks: 3\nsettime flags: 01\nit_value: (100, 5)\nit_interval: (2, 0)\n',
    });
    assert.deepEqual(stepsFor(fixture, timer), [
      'timerfd_create 1 0',
      'timerfd_settime s3 0 <0200000000000000000000000000000064000000000000000500000000000000> 0',
      'ioctl s3 1074287616 <0300000000000000>',
    ]);
  });

  it('registers epoll targets in the task that has them, after its descriptors', () => {
    const fixture = new FileFixture();
    const event = fixture.open({ link: 'anon_inode:[eventfd]', stat: anonymous, fdinfo: 'eventfd-count: 0\n' });
    const epoll = fixture.open({
      link: 'anon_inode:[eventpoll]',
      stat: anonymous,
      fdinfo: 'tfd:        8 events: 80000019 data: 1122334455667788  pos:0 ino:7 sdev:10\n',
    });
    fixture.task({ nsPid: 1, fds: { 3: epoll } });
    fixture.task({ nsPid: 2, parent: 1, fds: { 3: epoll, 8: event } });
    const ctx = fixture.compile();
    assert.equal(stepsOf(ctx, 1, Phase.DESCRIPTORS).filter((step) => step.startsWith('epoll_ctl')).length, 0);
    const child = stepsOf(ctx, 2, Phase.DESCRIPTORS);
    const register = child.indexOf('epoll_ctl 3 1 8 <190000808877665544332211>');
    assert.ok(register > child.findIndex((step) => /^dup3 s\d+ 8 /.test(step)), child.join('\n'));
  });

  it('refuses an epoll that watches a file which nobody has at that number any more', () => {
    const fixture = new FileFixture();
    const epoll = fixture.open({
      link: 'anon_inode:[eventpoll]',
      stat: anonymous,
      fdinfo: 'tfd: 9 events: 1 data: 9  pos:0 ino:99 sdev:10\n',
    });
    fixture.task({ nsPid: 1, fds: { 3: epoll } });
    assert.match(objectionsOf(fixture.encode())[0] ?? '', /watches a file by number 9, but no task has that file/);
  });

  it('restores a listening TCP socket with options, address and backlog', () => {
    const fixture = new FileFixture();
    assert.deepEqual(stepsFor(fixture, tcpSocket(fixture, 10, inet4(8080))), [
      'socket 2 524289 6',
      'setsockopt s3 1 2 <01000000> 4',
      'bind s3 <02001f907f0000010000000000000000> 16',
      'listen s3 77',
      'fcntl s3 4 2048',
    ]);
  });

  it('binds although old connections linger, and carries options that the format has no place for', () => {
    const fixture = new FileFixture();
    const socket = tcpSocket(fixture, 10, inet4(80));
    const file = fixture.openFiles[socket];
    assert.ok(file?.socket);
    file.socket.options = [
      { level: 1, name: 2, value: u32(0) },
      { level: 6, name: 18, value: u32(5000) },
      { level: 6, name: 9, value: u32(0) },
    ];
    assert.deepEqual(stepsFor(fixture, socket).slice(1, 5), [
      'setsockopt s3 6 18 <88130000> 4',
      'setsockopt s3 1 2 <01000000> 4',
      'bind s3 <020000507f0000010000000000000000> 16',
      'setsockopt s3 1 2 <00000000> 4',
    ]);
  });

  it('refuses images that set socket options which nobody captures', () => {
    const fixture = new FileFixture();
    fixture.task({ nsPid: 1, fds: { 5: tcpSocket(fixture, 10, inet4(80)) } });
    const model = withFile(fixture, (entry) =>
      entry.isk === undefined
        ? entry
        : { ...entry, isk: { ...entry.isk, stasis: { options: [{ level: 1, name: 50, value: u32(1) }] } } },
    );
    assert.throws(() => fixture.compile({}, model), /sets socket option 50 of level 1/);
  });

  it('refuses a socket of another network namespace', () => {
    const fixture = new FileFixture();
    const socket = tcpSocket(fixture, 10, inet4(80));
    const file = fixture.openFiles[socket];
    assert.ok(file?.socket);
    file.socket.netNamespace = 999n;
    fixture.task({ nsPid: 1, fds: { 5: socket } });
    assert.match(objectionsOf(fixture.encode())[0] ?? '', /a socket of another network namespace/);
  });

  it('refuses a TCP connection to outside by both addresses', () => {
    const fixture = new FileFixture();
    fixture.task({ nsPid: 1, comm: 'redis', fds: { 9: tcpSocket(fixture, 1, inet4(6379), inet4(40000)) } });
    assert.deepEqual(objectionsOf(fixture.encode()), [
      'fd 9 of pid 1001 (container pid 1) (redis) is a TCP connection (established) from 127.0.0.1:6379 to 127.0.0.1:40000, whose other end is not in the container',
    ]);
  });

  it('restores a unix socket pair with what each end has not read', () => {
    const fixture = withUnixSockets(unixDiag(11, 1, 1, { peer: 12 }), unixDiag(12, 1, 1, { peer: 11 }));
    const first = unixSocket(fixture, 11, 1, { queue: [Buffer.from('to-a')] });
    const second = unixSocket(fixture, 12, 1);
    fixture.task({ nsPid: 1, fds: { 3: first, 4: second } });
    const steps = stepsOf(fixture.compile(), 1, Phase.FILES).slice(3);
    assert.deepEqual(steps.slice(0, 3), ['socketpair 1 524289 0 <>', 'load <> 0 4', 'load <> 4 4']);
    // From the peer: what a is to read, b sends.
    assert.ok(steps.includes('sendto s4 <746f2d61> 4 16448 0 0'), steps.join('\n'));
  });

  it('connects an accepted unix socket to its listener again, so that it has its name', () => {
    const path = '/run/app.sock\0';
    const fixture = withUnixSockets(
      unixDiag(13, 1, 10, { name: path, backlog: 9 }),
      unixDiag(14, 1, 1, { name: path, peer: 15 }),
      unixDiag(15, 1, 1, { peer: 14 }),
    );
    const listener = unixSocket(fixture, 13, 1, { name: path });
    const accepted = unixSocket(fixture, 14, 1, { name: path });
    const client = unixSocket(fixture, 15, 1);
    fixture.task({ nsPid: 1, fds: { 3: listener, 4: accepted, 5: client } });
    const verbs = stepsOf(fixture.compile(), 1, Phase.FILES)
      .slice(3)
      .map((step) => step.split(' ')[0]);
    assert.deepEqual(verbs.slice(0, 8), [
      'socket',
      'unlinkat',
      'bind',
      'fchmodat',
      'listen',
      'socket',
      'connect',
      'accept4',
    ]);
  });

  it('binds a relative name where it was bound, with the mode of its file, and removes a path that was gone', () => {
    const name = 'ctl.sock';
    const fixture = withUnixSockets(
      unixDiag(13, 2, 7, { name }),
      unixDiag(14, 1, 10, { name: '/run/old\0', backlog: 1 }),
    );
    const bound = (link: string, pathMatches: boolean): PathReference => ({
      link: Buffer.from(link),
      stat: statx({ mode: 0o140620, uid: 7, gid: 8 }),
      pathMatches,
    });
    const relative = unixSocket(fixture, 13, 2, { name, boundFile: bound('/run/app/ctl.sock', true) });
    const old = unixSocket(fixture, 14, 1, { name: '/run/old\0', boundFile: bound('/run/old (deleted)', false) });
    fixture.task({ nsPid: 1, cwd: '/elsewhere', fds: { 3: relative, 4: old } });
    const steps = stepsOf(fixture.compile(), 1, Phase.FILES).join(' | ');
    assert.match(
      steps,
      /chdir "\/run\/app" \| unlinkat -100 "ctl.sock" 0 \| bind s\d+ .*? \| fchownat -100 "ctl.sock" 7 8 0 \| fchmodat -100 "ctl.sock" 400 \| chdir "\/"/,
    );
    assert.ok(steps.lastIndexOf('unlinkat -100 "/run/old" 0') > steps.indexOf('listen'), steps);
  });

  it('leaves the last words of a peer that has gone', () => {
    const fixture = withUnixSockets(unixDiag(20, 1, 1, { shutdown: 3 }));
    const socket = unixSocket(fixture, 20, 1, { queue: [Buffer.from('bye')] });
    const steps = stepsFor(fixture, socket);
    assert.ok(
      steps.some((step) => step.startsWith('sendto s4 <627965> 3')),
      steps.join('\n'),
    );
    assert.ok(steps.includes('close s4'));
    assert.ok(steps.includes('shutdown s3 2'));
  });

  it('refuses what a unix socket cannot be restored with, all at once', () => {
    const fixture = withUnixSockets(
      unixDiag(11, 1, 1, { peer: 99 }),
      unixDiag(12, 1, 10, { name: '\0x', pending: [5, 6] }),
    );
    const outside = unixSocket(fixture, 11, 1);
    const busy = unixSocket(fixture, 12, 1, { name: '\0x' });
    fixture.task({ nsPid: 1, fds: { 3: outside, 4: busy } });
    const objections = objectionsOf(fixture.encode());
    assert.equal(objections.length, 2);
    assert.match(objections[0] ?? '', /connected to socket:\[99\], which is outside the tree/);
    assert.match(objections[1] ?? '', /2 connections that nobody has accepted yet/);
  });

  it('names every kind that is not carried, all in one pass', () => {
    const fixture = new FileFixture();
    const links = ['anon_inode:[io_uring]', '/memfd:x (deleted)', 'anon_inode:[pidfd]', 'anon_inode:[userfaultfd]'];
    const fds = Object.fromEntries(
      links.map((link, index) => [index + 3, fixture.open({ link, pathMatches: false, stat: anonymous })]),
    );
    const terminal = fixture.open({ link: '/dev/pts/0', stat: { mode: 0o20620, rdev: (136n << 20n) | 0n } });
    const netlink = fixture.open({ link: 'socket:[77]', stat: { mode: 0o140777 }, socket: { family: 16, type: 3 } });
    const proc = fixture.open({ link: '/proc/17/status', stat: { filesystemMagic: 0x9fa0n } });
    fixture.task({ nsPid: 1, fds: { ...fds, 20: terminal, 21: netlink, 22: proc } });
    const objections = objectionsOf(fixture.encode()).map((text) =>
      text.replace(/^fd (\d+) of pid \d+ \(container pid 1\) \(target\) is /, '$1 '),
    );
    assert.deepEqual(objections, [
      '3 an io_uring instance',
      '4 a memfd of huge pages',
      '5 a pidfd',
      '6 a userfaultfd',
      '20 a terminal, "/dev/pts/0" (136:0), whose state is not carried',
      '21 a netlink socket',
      '22 "/proc/17/status", a file about process 17, which does not exist yet when files are restored',
    ]);
  });

  it('refuses images that name what is not there', () => {
    const fixture = new FileFixture();
    fixture.task({ nsPid: 1, fds: { 3: fixture.open({ link: '/a' }) } });
    const hostile: ((entry: file_entry) => file_entry)[] = [
      (entry) => ({ ...entry, reg: undefined }),
      (entry) => (entry.reg === undefined ? entry : { ...entry, reg: { ...entry.reg, name: 'relative' } }),
      (entry) => (entry.reg === undefined ? entry : { ...entry, reg: { ...entry.reg, name: `/${'x'.repeat(5000)}` } }),
    ];
    for (const change of hostile) {
      assert.throws(
        () => fixture.compile({}, withFile(fixture, change)),
        (error) => error instanceof StasisError && error.code === 'IMAGE_CORRUPT',
      );
    }
  });
});
