import assert from 'node:assert/strict';
import { Struct } from '../struct.js';
import { kRegistersBytes, parseRseqCriticalSection, registersFromImage, registersToImage } from './registers.js';

const kAx = 8 * 10;
const kOrigAx = 8 * 15;
const kIp = 8 * 16;

function registers(ax: bigint, origAx: bigint, ip: bigint): Uint8Array {
  const raw = new Struct(kRegistersBytes);
  for (let at = 0; at < kRegistersBytes; at += 8) raw.setU64(at, BigInt(at) + 0x1000n);
  return raw.setU64(kAx, ax).setU64(kOrigAx, origAx).setU64(kIp, ip).bytes;
}

describe('x86 registers', () => {
  it('brings a thread outside of a system call back as it was', () => {
    const before = registers(5n, -1n, 0x401000n);
    assert.deepEqual(registersFromImage(registersToImage(before, undefined)), before);
  });

  for (const restart of [-512n, -513n, -514n]) {
    it(`starts a system call again that was interrupted with ${restart}`, () => {
      const image = registersToImage(registers(restart, 202n, 0x401002n), undefined);
      assert.equal(image.ax, 202n);
      assert.equal(image.ip, 0x401000n);
    });
  }

  for (const call of [7n, 202n]) {
    it(`starts call ${call} over, whose caller would not expect EINTR`, () => {
      const image = registersToImage(registers(-516n, call, 0x401002n), undefined);
      assert.equal(image.ax, call);
      assert.equal(image.ip, 0x401000n);
    });
  }

  it('ends a sleep with EINTR whose caller was told how much is left, and starts another over', () => {
    const told = registersToImage(registers(-516n, 35n, 0x401002n), undefined);
    assert.equal(BigInt.asIntN(64, told.ax), -4n);
    assert.equal(told.ip, 0x401002n);
    const raw = new Struct(registers(-516n, 35n, 0x401002n)).setU64(8 * 13, 0n);
    assert.equal(registersToImage(raw.bytes, undefined).ax, 35n);
  });

  it('ends a call with EINTR whose number the kernel has replaced', () => {
    const image = registersToImage(registers(-516n, 219n, 0x401002n), undefined);
    assert.equal(BigInt.asIntN(64, image.ax), -4n);
    assert.equal(image.ip, 0x401002n);
  });

  it('leaves a value alone that only looks like a restart', () => {
    const image = registersToImage(registers(-512n, -1n, 0x401002n), undefined);
    assert.equal(BigInt.asIntN(64, image.ax), -512n);
    assert.equal(image.ip, 0x401002n);
  });

  it('never releases a thread inside of a system call', () => {
    const after = registersFromImage(registersToImage(registers(0n, 202n, 0x401002n), undefined));
    assert.equal(new Struct(after).i64(kOrigAx), -1n);
  });

  it('aborts a restartable sequence that was interrupted', () => {
    const section = parseRseqCriticalSection(new Struct(32).setU64s(8, [0x401000n, 0x20n, 0x500000n]).bytes);
    assert.equal(registersToImage(registers(1n, -1n, 0x40101fn), section).ip, 0x500000n);
    assert.equal(registersToImage(registers(1n, -1n, 0x401020n), section).ip, 0x401020n);
  });
});
