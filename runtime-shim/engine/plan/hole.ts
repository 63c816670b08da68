// Where the restore itself lives while it builds address spaces: a range that
// no task uses. The kernel backs only what is used of it.
import type { Plan } from '../../../nativecore/schema/messages.js';
import { countSteps } from './repeats.js';

export interface HoleRange {
  address: bigint;
  lengthBytes: bigint;
}

export const kUsualHoleBytes = 64n << 20n;
/** What the executor accepts (executor/validate_plan.cc). */
export const kMaximalHoleBytes = 8n << 30n;
/** In the middle of the address space: far from what programs, libraries, heaps and stacks get. */
const kFirstAddress = 0x200000000000n;
const kStepBytes = 0x10000000000n;
const kLastAddress = 0x700000000000n;

export function chooseHole(
  mappings: readonly { readonly start: bigint; readonly end: bigint }[],
  lengthBytes: bigint,
): HoleRange {
  const isFree = (address: bigint): boolean =>
    mappings.every(({ start, end }) => end <= address || start >= address + lengthBytes);
  const candidates: bigint[] = [];
  for (let address = kFirstAddress; address < kLastAddress; address += kStepBytes) candidates.push(address);
  for (let address = kStepBytes; address < kFirstAddress; address += kStepBytes) candidates.push(address);
  const address = candidates.find(isFree);
  return address === undefined ? { address: 0n, lengthBytes: 0n } : { address, lengthBytes };
}

// executor/hole_layout.h: what each part takes, rounded up
const kFixedBytes = 1 << 20; // header, interpreter, alignment
const kTaskBytes = 184 + 1024 + 8; // record, stack, set_tid
const kStepBytesInHole = 96 + 16;
const kRelocationBytes = 16;
const kUnitBytes = 2 << 20;

/** At least what the executor needs for this plan, in whole 2 MiB. */
export function neededHoleBytes(plan: Plan): bigint {
  let bytes = kFixedBytes + 8 * (plan.slotCount + 1);
  let relocations = 0;
  for (const blob of plan.blobs) {
    bytes += Math.max(blob.data.length, Number(blob.lengthBytes)) + 16;
    relocations += blob.relocations.length;
  }
  let steps = 0;
  for (const task of plan.tasks) {
    bytes += kTaskBytes;
    for (const phase of task.phases) steps += countSteps(phase.steps);
  }
  // a blob with relocations is usually named by one step; a few name it twice
  bytes += steps * kStepBytesInHole + 4 * relocations * kRelocationBytes;
  return BigInt(Math.ceil(bytes / kUnitBytes) * kUnitBytes);
}
