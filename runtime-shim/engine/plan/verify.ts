// The cheap proof that a plan makes sense, before anything is executed. The
// executor makes the same checks again on its side (executor/validate_plan.cc):
// a pair of assertions, one where plans are made and one where they are obeyed.
import {
  Phase,
  type Arg,
  type Connection,
  type Plan,
  type PlanTask,
  type Step,
} from '../../../nativecore/schema/messages.js';
import { StasisError } from '../../errors/index.js';
import { kTaskEnd, mapFlag } from '../resources/mapping-flags.js';

const kProcess = 0;
const kThread = 1;
const kHelper = 2;
const kZombie = 3;
const kMaximalArguments = 6;
const kPageBytes = 4096n;
const kRegistersBytes = 216;
/** struct sockaddr_in */
const kAddressBytes = 16;
/** SocketCall.AWAIT_PEER_END */
const kLastCallKind = 6;

interface Position {
  readonly task: number;
  readonly phase: number;
  readonly step: number;
}

/** Throws a BUG naming the first thing that is wrong: plans are ours, so a wrong one is our mistake. */
export function verifyPlan(plan: Plan): void {
  const definitions = new Map<number, Position>();
  const creations = new Map<number, Position>();
  for (const { slot } of plan.externals) define(definitions, slot, { task: 0, phase: 0, step: 0 }, plan);
  const hole = plan.hole;
  if (
    hole === undefined ||
    hole.lengthBytes === 0n ||
    hole.address % kPageBytes !== 0n ||
    hole.lengthBytes % kPageBytes !== 0n
  )
    refuse('it has no hole to live in');
  if (plan.tasks[0]?.kind !== kProcess) refuse('its first task is not a process');

  plan.tasks.forEach((task, index) => {
    checkTask(plan, task, index);
    for (const { phase, steps } of task.phases)
      steps.forEach((step, number) => {
        const at = { task: index, phase, step: number };
        if (step.moreArgs.length > 0) checkRepeats(at, step);
        if (step.outSlot !== 0) define(definitions, step.outSlot, at, plan);
        if (step.op === 'clone_process' || step.op === 'clone_thread') create(plan, creations, at, step);
      });
  });
  plan.tasks.forEach((_, index) => {
    if (index > 0 && !creations.has(index)) refuse(`nobody creates p${index}`);
  });
  plan.tasks.forEach((task, index) => {
    for (const { phase, steps } of task.phases)
      steps.forEach((step, number) =>
        checkStep(plan, definitions, creations, { task: index, phase, step: number }, step),
      );
    checkFills(plan, task, index);
  });
  plan.connections.forEach((connection, index) => checkConnection(plan, connection, index));
}

function checkConnection(plan: Plan, { task, fd, local, peer, calls, lastCalls }: Connection, index: number): void {
  if (plan.tasks[task]?.kind !== kProcess) refuse(`connection ${index} belongs to no process`);
  if (fd < 0) refuse(`connection ${index} has no descriptor`);
  if (local.length !== peer.length || local.length < kAddressBytes) refuse(`connection ${index} has no addresses`);
  if ([...calls, ...lastCalls].some(({ kind }) => kind < 0 || kind > kLastCallKind))
    refuse(`connection ${index} has a call that no socket takes`);
}

function refuse(problem: string, at?: Position, step?: Step): never {
  const where = at === undefined ? '' : ` (p${at.task}, phase ${at.phase}, step ${at.step}, ${step?.op ?? ''})`;
  throw new StasisError({
    code: 'BUG',
    message: `cannot restore: the restore plan is wrong: ${problem}${where}`,
    subject: step === undefined ? {} : { step: step.from },
    hint: 'please report this together with the printed plan',
  });
}

function define(definitions: Map<number, Position>, slot: number, at: Position, plan: Plan): void {
  if (slot < 1 || slot > plan.slotCount) refuse(`slot ${slot} is out of range`, at);
  if (definitions.has(slot)) refuse(`slot ${slot} is defined twice`, at);
  definitions.set(slot, at);
}

function checkTask(plan: Plan, task: PlanTask, index: number): void {
  if (index > 0) {
    const parent = plan.tasks[task.parent];
    if (task.parent >= index || parent === undefined) refuse(`p${index} precedes its parent`);
    if (parent?.kind === kThread || parent?.kind === kZombie) refuse(`the parent of p${index} cannot have children`);
  }
  let previous = 0;
  const last = task.kind === kHelper ? Phase.GROUPS : task.kind === kZombie ? Phase.THREADS : Phase.CREDENTIALS;
  const first = index === 0 ? Phase.NAMESPACES : task.kind === kThread ? Phase.THREADS : Phase.TASKS;
  for (const { phase } of task.phases) {
    if (phase <= previous) refuse(`the phases of p${index} are out of order`);
    if (phase < first || phase > last || (phase === Phase.FILL && task.kind !== kProcess))
      refuse(`p${index} has steps in phase ${phase}, which is not its`);
    previous = phase;
  }
  if (task.kind !== kProcess && task.kind !== kThread) return;
  if (task.release?.registers.length !== kRegistersBytes) refuse(`p${index} has no registers to be released with`);
}

function create(plan: Plan, creations: Map<number, Position>, at: Position, step: Step): void {
  const child = Number(step.args[0]?.immediate ?? -1n);
  const task = plan.tasks[child];
  if (task === undefined || task.parent !== at.task) refuse('it creates a task that is not its child', at, step);
  if (creations.has(child)) refuse(`p${child} is created twice`, at, step);
  if ((task?.kind === kThread) !== (step.op === 'clone_thread')) refuse(`p${child} is of the other kind`, at, step);
  creations.set(child, at);
}

function checkStep(
  plan: Plan,
  definitions: ReadonlyMap<number, Position>,
  creations: ReadonlyMap<number, Position>,
  at: Position,
  step: Step,
): void {
  if (step.args.length > kMaximalArguments) refuse('it has more than six arguments', at, step);
  if (step.op === 'await_fill') checkAwaitFill(plan, at, step);
  else if (at.phase === Phase.FILL && step.op !== 'mprotect')
    refuse('while memory is filled tasks wait for it and protect it, nothing else', at, step);
  for (const arg of step.args) {
    for (const slot of slotsOf(plan, arg, at, step)) {
      if (!isDefinedBefore(definitions.get(slot), at, creations))
        refuse(`slot ${slot} is used before it is defined`, at, step);
    }
  }
  checkRange(plan, at, step, rangeOf(step));
  const width = step.args.length;
  for (let next = 0; next < step.moreArgs.length; next += width)
    checkRange(plan, at, step, rangeAmong(step.op, step.moreArgs.slice(next, next + width)));
}

function checkAwaitFill(plan: Plan, at: Position, step: Step): void {
  const [count, ...more] = step.args;
  const ranges = BigInt(plan.tasks[at.task]?.uffdRanges.length ?? 0);
  if (at.phase !== Phase.FILL) refuse('memory is filled in phase FILL', at, step);
  if (count?.immediate === undefined || more.length > 0 || count.immediate > ranges)
    refuse('it takes a number of userfaultfd ranges of its task', at, step);
}

/** Positions are of messages here; the executor counts each repeat. */
function checkRepeats(at: Position, step: Step): void {
  if (step.args.length === 0 || step.moreArgs.length % step.args.length !== 0)
    refuse('its last repeat lacks arguments', at, step);
  if (step.args.some((arg) => arg.immediate === undefined) || step.outSlot !== 0)
    refuse('what is repeated has other arguments than numbers, or a result', at, step);
  if (kBuiltIn.has(step.op)) refuse('what is repeated is no system call', at, step);
}

const kBuiltIn = new Set(['clone_process', 'clone_thread', 'load', 'exit_now', 'await_fill']);

function checkRange(plan: Plan, at: Position, step: Step, range: Range | undefined): void {
  const hole = plan.hole;
  if (range === undefined || hole === undefined) return;
  if (range.start % kPageBytes !== 0n || range.start + range.length > kTaskEnd)
    refuse('its range is not one of pages', at, step);
  if (range.start < hole.address + hole.lengthBytes && hole.address < range.start + range.length)
    refuse('it would change the hole', at, step);
}

/** Slots that an argument reads, through blobs as well. */
function slotsOf(plan: Plan, arg: Arg, at: Position, step: Step): number[] {
  if (arg.slot !== undefined) return [arg.slot];
  const first = arg.blob ?? arg.blobOffset?.blob;
  if (first === undefined) return [];
  const slots: number[] = [];
  const seen = new Set<number>();
  const queue = [first];
  for (let index = queue.pop(); index !== undefined; index = queue.pop()) {
    if (seen.has(index)) continue;
    seen.add(index);
    const blob = plan.blobs[index];
    if (blob === undefined) return refuse(`there is no blob ${index}`, at, step);
    const length = Math.max(blob.data.length, Number(blob.lengthBytes));
    if (index === first && (arg.blobOffset?.offset ?? 0) > length) refuse('an address lies outside its blob', at, step);
    for (const relocation of blob.relocations) {
      const width = relocation.slot32 === undefined ? 8 : 4;
      if (relocation.offset + width > length) refuse('a relocation lies outside its blob', at, step);
      if (relocation.blob !== undefined) queue.push(relocation.blob);
      const slot = relocation.slot32 ?? relocation.slot64;
      // "load" reads what a system call has left there
      if (slot !== undefined && step.op !== 'load') slots.push(slot);
    }
  }
  return slots;
}

/** Barriers order phases; inside one a task sees its own steps and its ancestors' before its creation. */
function isDefinedBefore(
  definition: Position | undefined,
  use: Position,
  creations: ReadonlyMap<number, Position>,
): boolean {
  if (definition === undefined) return false;
  if (definition.phase !== use.phase) return definition.phase < use.phase;
  let at: Position | undefined = use;
  while (at !== undefined && at.task !== definition.task) {
    at = creations.get(at.task);
    if (at?.phase !== use.phase) return false;
  }
  return at !== undefined && definition.step < at.step;
}

const kRangeCalls = new Set(['munmap', 'mmap', 'madvise', 'mprotect', 'mlock2']);

interface Range {
  readonly start: bigint;
  readonly length: bigint;
}

const rangeOf = (step: Step): Range | undefined =>
  kRangeCalls.has(step.op)
    ? rangeAmong(
        step.op,
        step.args.map((arg) => arg.immediate),
      )
    : undefined;

function rangeAmong(op: string, [start, length, , flags]: readonly (bigint | undefined)[]): Range | undefined {
  if (!kRangeCalls.has(op) || start === undefined || length === undefined) return undefined;
  if (op === 'mmap' && ((flags ?? 0n) & BigInt(mapFlag.FIXED_NOREPLACE)) === 0n) return undefined;
  return { start, length };
}

function checkFills(plan: Plan, task: PlanTask, index: number): void {
  if (task.uffdRanges.length > 0 && task.uffdSlot === 0) refuse(`p${index} has ranges to fill but no userfaultfd`);
  const ranges = [...task.uffdRanges].sort((left, right) => (left.address < right.address ? -1 : 1));
  for (const fill of task.fills) {
    if (plan.pageFiles[fill.pageFile] === undefined) refuse(`p${index} is filled from a page file that is not there`);
    if (fill.method === 0 && !liesInOne(ranges, fill.address, fill.address + fill.pageCount * kPageBytes))
      refuse(`a fill of p${index} at 0x${fill.address.toString(16)} lies outside its ranges`);
  }
}

function liesInOne(sorted: PlanTask['uffdRanges'], start: bigint, end: bigint): boolean {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((sorted[middle]?.address ?? 0n) <= start) low = middle + 1;
    else high = middle;
  }
  const range = sorted[low - 1];
  return range !== undefined && end <= range.address + range.lengthBytes;
}
