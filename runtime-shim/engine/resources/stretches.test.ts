import assert from 'node:assert/strict';
import type { vma_entry } from '../../../oci-spec/images/messages.js';
import { mapFlag, prot, vmaStatus } from './mapping-flags.js';
import { findStretches, piecesOf } from './stretches.js';

const kPage = 4096n;
const kFirst = 0x10000000n;

function vma(page: number, protection: number, more: Partial<vma_entry> = {}): vma_entry {
  const start = kFirst + BigInt(page) * kPage;
  return {
    start,
    end: start + kPage,
    pgoff: 0n,
    shmid: 0n,
    prot: protection,
    flags: mapFlag.PRIVATE | mapFlag.ANONYMOUS,
    status: vmaStatus.REGULAR | vmaStatus.ANON_PRIVATE,
    fd: -1n,
    ...more,
  } as vma_entry;
}

const readWrite = prot.READ | prot.WRITE;
const alternating = (count: number, more: (page: number) => Partial<vma_entry> = () => ({})): vma_entry[] =>
  Array.from({ length: count }, (_, page) => vma(page, page % 2 === 0 ? readWrite : prot.READ, more(page)));

describe('stretches of small mappings', () => {
  it('are neighbours that differ in protection only', () => {
    const vmas = alternating(20);
    const [found, ...others] = findStretches(vmas);
    assert.deepEqual(others, []);
    assert.equal(found?.[0], vmas[0]);
    assert.deepEqual(found?.[1], { start: vmas[0]?.start, end: vmas[19]?.end, vmas, prot: prot.READ });
  });

  it('are mapped with the commonest protection that is not writable', () => {
    const protections = [readWrite, readWrite, 0, prot.READ, prot.READ, readWrite, readWrite, 0, 0, readWrite];
    const vmas = protections.map((protection, page) => vma(page, protection));
    assert.equal([...findStretches(vmas).values()][0]?.prot, 0);
    const writable = alternating(8).map((each, page) => ({
      ...each,
      prot: page % 3 === 0 ? readWrite | prot.EXEC : readWrite,
    }));
    assert.equal([...findStretches(writable).values()][0]?.prot, readWrite);
  });

  it('are told apart in pieces that end with what is told apart', () => {
    const vmas = alternating(300).map((each, page) => ({ ...each, prot: page % 2 === 0 ? prot.READ : readWrite }));
    const stretch = { start: kFirst, end: vmas[299]?.end ?? 0n, vmas, prot: readWrite };
    const pieces = piecesOf(stretch);
    assert.deepEqual(
      pieces.map(({ start, end }) => [(start - kFirst) / kPage, (end - kFirst) / kPage]),
      [
        [0n, 129n],
        [129n, 257n],
        [257n, 300n],
      ],
    );
    assert.deepEqual(
      pieces.flatMap(({ vmas: members }) => members),
      vmas,
    );
  });

  const broken: readonly [string, (page: number) => Partial<vma_entry>][] = [
    [
      'a gap',
      (page) => (page < 7 ? {} : { start: kFirst + BigInt(page + 1) * kPage, end: kFirst + BigInt(page + 2) * kPage }),
    ],
    ['other flags', (page) => (page < 7 ? {} : { flags: mapFlag.PRIVATE | mapFlag.ANONYMOUS | mapFlag.NORESERVE })],
    ['other advice', (page) => (page < 7 ? {} : { madv: 1n << 16n })],
    ['a file', (page) => (page === 7 ? { status: vmaStatus.REGULAR | vmaStatus.FILE_PRIVATE } : {})],
    ['locked memory', (page) => (page === 7 ? { flags: mapFlag.PRIVATE | mapFlag.ANONYMOUS | mapFlag.LOCKED } : {})],
    ['a stack', (page) => (page === 7 ? { flags: mapFlag.PRIVATE | mapFlag.ANONYMOUS | mapFlag.GROWSDOWN } : {})],
  ];
  for (const [what, more] of broken)
    it(`end at ${what}`, () => {
      assert.equal(findStretches(alternating(14, more)).size, 0);
    });

  it('do not take in what is large', () => {
    const vmas = alternating(9);
    const last = vmas.pop()!;
    vmas.push({ ...last, end: last.start + (1n << 20n) });
    assert.equal([...findStretches(vmas).values()][0]?.vmas.length, 8);
  });
});
