import assert from 'node:assert/strict';
import { parseFdinfo, parseSmaps, ProcStat, ProcStatus } from './proc-text.js';
import { parseLimits } from './resources/rlimits.js';

const bytes = (text: string): Uint8Array => Buffer.from(text, 'utf8');

describe('texts of /proc', () => {
  it('a stat line whose name has blanks and parentheses', () => {
    const stat = new ProcStat(bytes('12 (a (b) c) S 1 12 12 0 -1 4194560 90 0\n'));
    assert.equal(stat.comm, 'a (b) c');
    assert.equal(stat.state, 'S');
    assert.equal(stat.big(9), 4194560n);
  });

  it('a status with lists and masks', () => {
    const status = new ProcStatus(bytes('Name:\tx\nUid:\t1\t2\t3\t4\nGroups:\t \nCapEff:\t000001ffffffffff\n'));
    assert.deepEqual(status.numbers('Uid'), [1, 2, 3, 4]);
    assert.deepEqual(status.numbers('Groups'), []);
    assert.equal(status.mask('CapEff'), 0x1ffffffffffn);
  });

  it('smaps with high addresses, blanks in paths, flags and protection keys', () => {
    const [first, second, third] = parseSmaps(
      bytes(
        'fd0000000000-fd0000001000 r-xp 00002000 fe:01 77                /a b (deleted)\n' +
          'Size:                  4 kB\nVmFlags: rd ex mr mw me \n' +
          '7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]\n' +
          'ProtectionKey:         3\nVmFlags: rd wr gd ac \n' +
          'ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n',
      ),
    );
    assert.equal(first?.start, 0xfd0000000000n);
    assert.equal(first?.name, '/a b (deleted)');
    assert.equal(first?.device, (0xfen << 20n) | 1n);
    assert.equal(first?.offset, 0x2000n);
    assert.ok(second?.flags.has('gd'));
    assert.equal(second?.protectionKey, 3);
    assert.equal(third?.end, 0xffffffffff601000n);
  });

  it('smaps whose names look like other lines, or that end early', () => {
    const mappings = parseSmaps(
      bytes(
        '1000-2000 rw-p 00000000 00:00 0 \nSize:                  4 kB\nVmFlags: rd wr \n' +
          '2000-3000 r--p 00000000 fe:01 7                 /tmp/VmFlags: gd\nSize:   4 kB\nVmFlags: rd \n' +
          '3000-4000 r--p 00000000 fe:01 7                 /tmp/ProtectionKey: 5\nProtectionKey: 0\nVmFlags: rd \n' +
          '4000-5000 rw-p\nSize:   4 kB\n' +
          '5000-6000 rw-p 00000000 00:00 0 \nProtectionKey: 2\nVmFlags: rd wr lo',
      ),
    );
    assert.deepEqual(
      mappings.map(({ start, name, inode, flags, protectionKey }) => [start, name, inode, [...flags], protectionKey]),
      [
        [0x1000n, '', 0n, ['rd', 'wr'], 0],
        [0x2000n, '/tmp/VmFlags: gd', 7n, ['rd'], 0],
        [0x3000n, '/tmp/ProtectionKey: 5', 7n, ['rd'], 0],
        [0x5000n, '', 0n, ['rd', 'wr', 'lo'], 2],
      ],
    );
    assert.deepEqual(parseSmaps(bytes('')), []);
  });

  it('fdinfo with repeated keys', () => {
    const info = parseFdinfo(bytes('pos:\t5\nflags:\t02\ntfd:        3 events: 1\ntfd:        4 events: 2\n'));
    assert.deepEqual(info.get('tfd'), ['3 events: 1', '4 events: 2']);
  });

  it('limits', () => {
    const limits = parseLimits(
      bytes(
        'Limit                     Soft Limit           Hard Limit           Units     \n' +
          'Max cpu time              unlimited            unlimited            seconds   \n' +
          'Max open files            1024                 4096                 files     \n' +
          'Max nice priority         0                    0                    \n',
      ),
    );
    assert.deepEqual(limits.get('Max open files'), { cur: 1024n, max: 4096n });
    assert.equal(limits.get('Max cpu time')?.max, (1n << 64n) - 1n);
    assert.deepEqual(limits.get('Max nice priority'), { cur: 0n, max: 0n });
  });
});
