// Many small neighbouring mappings that differ in protection only, as guard
// pages and sealed tables make them: each would cost a mmap(2), a registration
// with the userfaultfd and a copy of its own. A stretch of them is mapped and
// filled as one; mprotect(2) tells them apart, piece by piece behind the fill.
import type { vma_entry } from '../../../oci-spec/images/messages.js';
import { mapFlag, prot, vmaStatus } from './mapping-flags.js';

export interface Stretch {
  readonly start: bigint;
  readonly end: bigint;
  /** In order of address, without gaps. */
  readonly vmas: readonly vma_entry[];
  /** What all of it is mapped with. */
  readonly prot: number;
}

/** What is told apart at a time: one piece while the next one is filled. */
export interface Piece {
  readonly start: bigint;
  readonly end: bigint;
  readonly vmas: readonly vma_entry[];
}

/** mprotect(2) walks the pages of what is larger for longer than a mmap(2) of its own takes. */
const kMaximalMemberBytes = 128n << 10n;
const kFewestMembers = 8;
/** Each costs a registration; the first and the last one are what is not done side by side. */
const kPieceBytes = 512n << 10n;
const kPlainStatus = vmaStatus.REGULAR | vmaStatus.ANON_PRIVATE;

const mayJoin = (vma: vma_entry): boolean =>
  (vma.status & ~vmaStatus.HEAP) === kPlainStatus &&
  (vma.flags & (mapFlag.GROWSDOWN | mapFlag.LOCKED | mapFlag.DROPPABLE | mapFlag.HUGETLB)) === 0 &&
  vma.end - vma.start <= kMaximalMemberBytes;

const isAlike = (one: vma_entry, other: vma_entry): boolean =>
  one.status === other.status && one.flags === other.flags && (one.madv ?? 0n) === (other.madv ?? 0n);

/** By their first mapping. `vmas` is in order of address. */
export function findStretches(vmas: readonly vma_entry[]): ReadonlyMap<vma_entry, Stretch> {
  const stretches = new Map<vma_entry, Stretch>();
  let members: vma_entry[] = [];
  const finish = (): void => {
    const [first] = members;
    const last = members.at(-1);
    if (first !== undefined && last !== undefined && members.length >= kFewestMembers)
      stretches.set(first, { start: first.start, end: last.end, vmas: members, prot: commonProtection(members) });
    members = [];
  };
  for (const vma of vmas) {
    const last = members.at(-1);
    if (last !== undefined && (last.end !== vma.start || !isAlike(last, vma) || !mayJoin(vma))) finish();
    if (mayJoin(vma)) members.push(vma);
  }
  finish();
  return stretches;
}

/**
 * The commonest one, but not a writable one if there is a choice: what has been
 * writable stays charged against the commit limit, what becomes so is charged then.
 */
function commonProtection(vmas: readonly vma_entry[]): number {
  const counts = new Map<number, number>();
  for (const vma of vmas) counts.set(vma.prot, (counts.get(vma.prot) ?? 0) + 1);
  const rank = ([protection, count]: readonly [number, number]): number =>
    (protection & prot.WRITE) === 0 ? count + vmas.length : count;
  return [...counts].reduce((best, next) => (rank(next) > rank(best) ? next : best))[0];
}

/**
 * A piece ends with what will be told apart: otherwise its rest would merge with the next piece as soon as that is no
 * longer registered, and who copies there would wait for who divides here.
 */
export function piecesOf(stretch: Stretch): Piece[] {
  const pieces: Piece[] = [];
  let members: vma_entry[] = [];
  for (const vma of stretch.vmas) {
    members.push(vma);
    const start = members[0]?.start ?? vma.start;
    const isLast = vma.end === stretch.end;
    if (!isLast && (vma.end - start < kPieceBytes || vma.prot === stretch.prot)) continue;
    pieces.push({ start, end: vma.end, vmas: members });
    members = [];
  }
  return pieces;
}
