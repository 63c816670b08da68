import assert from 'node:assert/strict';
import type { file_lock_entry } from '../../../oci-spec/images/messages.js';
import { ImageSetWriter } from '../image-set.js';
import { Phase } from '../plan/builder.js';
import { FileFixture, objectionsOf, stepsOf } from './file-fixture.js';
import { parseLocks } from './file-locks.js';

const info = (inode: number, ...locks: readonly string[]): string =>
  `pos:\t0\nino:\t${inode}\n${locks.map((lock) => `lock:\t1: ${lock}\n`).join('')}`;

/** Pid 1 has /db (inode 42 of an overlay, which stat(2) calls 7) at 3 and 5, /pid at 4. */
function database(procLocks: string, fdinfo: { readonly db?: string; readonly pid?: string } = {}): FileFixture {
  const fixture = new FileFixture({ procLocks: Buffer.from(procLocks) });
  const reader = fixture.open({ link: '/db', statusFlags: 0, fdinfo: info(42), stat: { inode: 7n } });
  const db = fixture.open({ link: '/db', fdinfo: fdinfo.db ?? info(42), stat: { inode: 7n } });
  const pid = fixture.open({ link: '/pid', fdinfo: fdinfo.pid ?? info(43), stat: { inode: 43n } });
  fixture.task({ nsPid: 1, comm: 'db', fds: { 3: reader, 4: pid, 5: db } });
  return fixture;
}

const locksOf = (fixture: FileFixture): file_lock_entry[] => fixture.model(fixture.encode()).set.messages('filelocks');

const posix = { flag: 1, type: 1, pid: 1, fd: 5, start: 0n, len: 0n };

describe('file locks', () => {
  it('are read from /proc/locks, without those who wait', () => {
    const text =
      '1: POSIX  ADVISORY  WRITE 1001 fe:00:42 0 EOF\n1: -> POSIX  ADVISORY  WRITE 1002 fe:00:42 0 EOF\n2: FLOCK  ADVISORY  READ 7 00:2a:9 10 19\n';
    assert.deepEqual(parseLocks(text), [
      { kind: 'POSIX', access: 'WRITE', hostPid: 1001, device: 0xfe00000n, inode: 42n, start: 0n, lengthBytes: 0n },
      { kind: 'FLOCK', access: 'READ', hostPid: 7, device: 0x2an, inode: 9n, start: 10n, lengthBytes: 10n },
    ]);
  });

  it('of a process name a descriptor that the lock may have been taken through', () => {
    // The number of an inode is that of the file system, not what stat(2) says of an overlay.
    assert.deepEqual(locksOf(database('1: POSIX  ADVISORY  WRITE 1001 00:2f:42 0 EOF\n')), [posix]);
    assert.deepEqual(locksOf(database('1: POSIX  ADVISORY  READ 1001 00:2f:42 100 199\n')), [
      { ...posix, type: 0, fd: 3, start: 100n, len: 100n },
    ]);
    const listed = 'POSIX  ADVISORY  READ 1001 00:2f:42 0 EOF';
    assert.deepEqual(locksOf(database(`7: ${listed}\n`, { db: info(42, listed) })), [{ ...posix, type: 0 }]);
  });

  it('of open files are theirs, whoever took them', () => {
    const fdinfo = {
      pid: info(43, 'FLOCK  ADVISORY  WRITE 77 fe:00:43 0 EOF'),
      db: info(42, 'OFDLCK ADVISORY  READ -1 00:2f:42 5 5'),
    };
    assert.deepEqual(locksOf(database('', fdinfo)), [
      { flag: 4, type: 0, pid: 1, fd: 5, start: 5n, len: 1n },
      { flag: 2, type: 1, pid: 1, fd: 4, start: 0n, len: 0n },
    ]);
  });

  it('of others are none of ours', () => {
    assert.deepEqual(locksOf(database('1: POSIX  ADVISORY  WRITE 55 00:2f:42 0 EOF\n')), []);
  });

  it('are refused where they could not be taken again', () => {
    const refused = (procLocks: string, fdinfo = {}): string[] =>
      objectionsOf(database(procLocks, fdinfo).encode()).map((text) => text.replace(/^.*\(db\) holds a /, ''));
    assert.deepEqual(refused('1: POSIX  ADVISORY  WRITE 1001 00:2f:99 0 EOF\n'), [
      'POSIX lock (write) on inode 99; no descriptor of it shows that file',
    ]);
    assert.deepEqual(refused('', { pid: info(43, 'LEASE  ACTIVE    READ 1001 fe:00:43 0 EOF') }), [
      'LEASE lock (read) on "/pid"; locks of this kind are not carried',
    ]);
  });

  it('are taken again after the memory has been made', () => {
    const fdinfo = { pid: info(43, 'FLOCK  ADVISORY  READ 77 fe:00:43 0 EOF') };
    const steps = stepsOf(
      database('1: POSIX  ADVISORY  WRITE 1001 00:2f:42 100 199\n', fdinfo).compile(),
      1,
      Phase.THREADS,
    );
    const range = Buffer.alloc(32);
    range.writeInt16LE(1, 0);
    range.writeBigInt64LE(100n, 8);
    range.writeBigInt64LE(100n, 16);
    assert.deepEqual(steps.slice(-2), ['flock 4 5', `fcntl 5 6 <${range.toString('hex')}>`]);
  });

  it('of images are checked before anything is made', () => {
    const compile = (entry: Partial<file_lock_entry>) => {
      const fixture = database('');
      const images = new ImageSetWriter();
      images.add('filelocks', undefined, { ...posix, ...entry });
      const [file] = images.files();
      return fixture.compile(
        {},
        fixture.model(fixture.encode(), (files) => files.set(file!.name, file!.bytes)),
      );
    };
    assert.deepEqual(objectionsOf(compile({})), []);
    assert.throws(() => compile({ pid: 9 }), /"filelocks.img" has a lock of fd 5 of pid 9, which is not there/);
    assert.throws(() => compile({ fd: 6 }), /has a lock of fd 6 of pid 1, which is not there/);
    assert.throws(() => compile({ start: -1n }), /impossible range/);
    assert.throws(() => compile({ start: 2n ** 62n, len: 2n ** 62n }), /impossible range/);
    assert.match(objectionsOf(compile({ flag: 8 }))[0] ?? '', /a lock of kind 8, type 1, .* which is not carried/);
    assert.match(objectionsOf(compile({ type: 2 }))[0] ?? '', /a lock of kind 1, type 2, .* which is not carried/);
  });
});
