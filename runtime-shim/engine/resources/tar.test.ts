import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readTar, TarError, writeTar, type NewTarEntry } from './tar.js';

const file = (name: string, more: Partial<NewTarEntry> = {}): NewTarEntry => ({
  name: Buffer.from(name),
  type: 'file',
  mode: 0o644,
  uid: 0,
  gid: 0,
  mtimeNs: 1_700_000_000_123_456_789n,
  content: Buffer.from('content'),
  linkName: Buffer.alloc(0),
  deviceMajor: 0,
  deviceMinor: 0,
  attributes: new Map(),
  ...more,
});

const nothing = { content: new Uint8Array(0) };

describe('tar', () => {
  it('reads back what it writes, down to nanoseconds, long names and attributes', () => {
    const entries = [
      file('', { type: 'directory', mode: 0o1777, ...nothing }),
      file('d', { type: 'directory', mode: 0o755, uid: 3_000_000, ...nothing }),
      file(`d/${'n'.repeat(180)}`, { attributes: new Map([['user.x', Buffer.from([0, 1, 0xff])]]) }),
      file('null', { type: 'character', mode: 0o666, deviceMajor: 1, deviceMinor: 3, ...nothing }),
      file('l', { type: 'symlink', linkName: Buffer.from('/proc/self/fd'), ...nothing }),
      file('h', { type: 'link', linkName: Buffer.from('./null'), ...nothing }),
      file(Buffer.from([0xff, 0x41]).toString('latin1'), { name: Buffer.from([0xff, 0x41]) }),
    ];
    const read = readTar(writeTar(entries));
    assert.equal(read.length, entries.length);
    for (const [index, entry] of entries.entries()) {
      const { runs: _runs, sizeBytes, ...rest } = read[index] ?? assert.fail();
      assert.equal(sizeBytes, entry.content.length);
      assert.deepEqual(
        { ...rest, content: Buffer.from(rest.content) },
        { ...entry, content: Buffer.from(entry.content) },
      );
    }
  });

  it('is understood by tar(1), and understands what tar(1) writes', () => {
    const listing = execFileSync('tar', ['-tvf', '-', '--numeric-owner'], {
      input: writeTar([
        file('', { type: 'directory', ...nothing }),
        file('null', { type: 'character', deviceMajor: 1, deviceMinor: 3, ...nothing }),
      ]),
      encoding: 'utf8',
    });
    assert.match(listing, /^d.* \.\/\nc.* 1,3 .* \.\/null\n$/);
    const script =
      'd=$(mktemp -d); cd $d; mkdir a; echo hi > a/f; truncate -s 1M s; printf x | dd of=s bs=1 seek=500000 conv=notrunc 2>/dev/null; tar -cS -f - .; rm -r $d';
    const read = readTar(execFileSync('sh', ['-c', script], { maxBuffer: 1 << 24 }));
    const sparse = read.find((entry) => entry.name.toString() === 's');
    assert.equal(sparse?.sizeBytes, 1 << 20);
    assert.ok(sparse.runs.some((run) => run.offset <= 500000 && run.bytes.includes(0x78)));
    assert.equal(read.find((entry) => entry.name.toString() === 'a/f')?.content.toString(), 'hi\n');
  });

  it('refuses damaged and truncated archives', () => {
    const tar = writeTar([file('a'), file('b')]);
    const damaged = Buffer.from(tar);
    damaged[0] = 0x7a;
    assert.throws(() => readTar(damaged), TarError);
    assert.throws(() => readTar(tar.subarray(0, 515)), TarError);
    const huge = Buffer.from(tar.subarray(0, 512));
    huge.write('77777777777', 124, 'latin1');
    let sum = 0;
    huge.fill(0x20, 148, 156);
    for (const byte of huge) sum += byte;
    huge.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
    assert.throws(() => readTar(huge), /ends inside a member/);
  });
});
