// The printed plan: what a restore would do, step by step. The form is stable;
// tests compare it and failed steps are shown by their line.
import {
  Phase,
  type Arg,
  type Blob,
  type Connection,
  type Plan,
  type PlanTask,
  type SocketCall,
  type Step,
} from '../../../nativecore/schema/messages.js';
import { decodeArgument, isTextArgument } from './print-arguments.js';
import { countSteps, expandSteps, stepAt } from './repeats.js';

const kPhaseReasons: Readonly<Record<string, string>> = {
  NAMESPACES: 'what everything after stands on',
  FILES: 'open files, each once; children inherit them',
  TASKS: 'pids must exist before anything names them',
  GROUPS: 'all leaders exist now; helpers leave at the end',
  DESCRIPTORS: 'from the shared high numbers to each own table, and what only one task has',
  MEMORY: 'away with what we brought, then the own mappings',
  FILL: 'the coordinator copies the pages',
  THREADS: 'needs filled memory: what the kernel keeps addresses of',
  CREDENTIALS: 'last: nobody may attach to a half-privileged task',
};

const kPhases: readonly { readonly name: string; readonly value: number }[] = Object.entries(Phase)
  .map(([name, value]) => ({ name, value: value as number }))
  .filter(({ value }) => value !== Phase.PHASE_UNKNOWN)
  .sort((left, right) => left.value - right.value);

const kSocketCalls = ['setsockopt', 'bind', 'connect', 'send', 'shutdown', 'send a packet', 'poll'] as const;
const kTaskKinds = ['process', 'thread', 'helper', 'zombie'] as const;
const kRuleWidth = 58;
const kBodyWidth = 100;
const kTextLimit = 120;

/** Position of a step as the executor reports it. */
export interface StepPosition {
  readonly task: number;
  readonly phase: number;
  readonly step: number;
}

export function printPlan(plan: Plan): string {
  const lines: string[] = [];
  const { hole } = plan;
  const digest = plan.imageDigest === '' ? '' : `  image ${shorten(plan.imageDigest)}`;
  lines.push(
    `plan v${plan.version}  tasks=${plan.tasks.length}  slots=${plan.slotCount}  blobs=${plan.blobs.length}  ` +
      `hole=${hex(hole?.address ?? 0n)}+${(hole?.lengthBytes ?? 0n) >> 20n}MiB${digest}`,
  );
  for (const { name, slot, descriptor } of plan.externals)
    lines.push(`external ${slotName(slot)} = descriptor ${descriptor} "${name}"`);
  plan.pageFiles.forEach((name, index) => lines.push(`pages ${index} = "${name}"`));
  plan.tasks.forEach((task, index) => lines.push(printTask(task, index)));
  const numbers = stepNumbers(plan);
  for (const phase of kPhases) {
    const body =
      phase.value === Phase.FILL
        ? [
            ...plan.tasks.flatMap((task, index) => printFills(plan, task, index)),
            ...printPhase(plan, phase.value, numbers),
          ]
        : printPhase(plan, phase.value, numbers);
    if (body.length === 0) continue;
    lines.push(`${`── phase ${phase.name.toLowerCase()} `.padEnd(kRuleWidth, '─')} ${kPhaseReasons[phase.name] ?? ''}`);
    lines.push(...body);
  }
  if (plan.connections.length > 0) {
    lines.push(
      `${'── connections '.padEnd(kRuleWidth, '─')} the coordinator makes them while their packets are dropped`,
    );
    plan.connections.forEach((connection, index) => lines.push(...printConnection(connection, index)));
  }
  lines.push(`${'── release '.padEnd(kRuleWidth, '─')} every thread goes on where it was`);
  plan.tasks.forEach((task, index) => {
    if (task.release !== undefined) lines.push(printRelease(task, index));
  });
  return `${lines.join('\n')}\n`;
}

/** The line of one step, for messages about it; undefined if there is no such step. */
export function printStep(
  plan: Plan,
  position: StepPosition,
): { readonly line: string; readonly from: string } | undefined {
  const task = plan.tasks[position.task];
  const phase = task?.phases.find((candidate) => candidate.phase === position.phase);
  const step = stepAt(phase?.steps ?? [], position.step);
  if (step === undefined) return undefined;
  const number = stepNumbers(plan).get(position.task)?.get(position.phase) ?? 0;
  return { line: stepText(plan, position.task, number + position.step, step), from: step.from };
}

function printTask(task: PlanTask, index: number): string {
  const parts = [`task p${index}`, kTaskKinds[task.kind] ?? `kind ${task.kind}`];
  if (index > 0) parts.push(`of p${task.parent}`);
  if (task.setTid.length > 0) parts.push(`set_tid=[${task.setTid.join(' ')}]`);
  if (task.cloneFlags !== 0n) parts.push(`flags=${decodeArgument('clone', task.cloneFlags)}`);
  if (task.stopped) parts.push('stopped');
  return withFrom(parts.join('  '), task.from);
}

/** task -> phase -> number of its first step; counted through all phases of a task, from 1. */
function stepNumbers(plan: Plan): ReadonlyMap<number, ReadonlyMap<number, number>> {
  return new Map(
    plan.tasks.map((task, index) => {
      let next = 1;
      const first = new Map<number, number>();
      for (const { phase, steps } of task.phases) {
        first.set(phase, next);
        next += countSteps(steps);
      }
      return [index, first];
    }),
  );
}

function printPhase(plan: Plan, phase: number, numbers: ReadonlyMap<number, ReadonlyMap<number, number>>): string[] {
  return plan.tasks.flatMap((task, index) => {
    const steps = task.phases.find((candidate) => candidate.phase === phase)?.steps ?? [];
    const first = numbers.get(index)?.get(phase) ?? 1;
    return expandSteps(steps).map((step, at) => withFrom(stepText(plan, index, first + at, step), step.from));
  });
}

function stepText(plan: Plan, task: number, number: number, step: Step): string {
  const label = `p${task}.${String(number).padStart(4, '0')}`;
  const args = step.args.map((arg, at) => printArg(plan, step, arg, at)).join(' ');
  const out = step.outSlot === 0 ? '' : ` -> ${slotName(step.outSlot)}`;
  const expected = step.hasExpected ? ` = ${hexOrDecimal(step.expected)}` : '';
  const tolerated = step.toleratedErrnos.length === 0 ? '' : ` or errno ${step.toleratedErrnos.join('/')}`;
  const note = step.note === '' ? '' : ` (${step.note})`;
  return `${label.padEnd(9)} ${step.op.padEnd(15)} ${args}${out}${expected}${tolerated}${note}`.trimEnd();
}

function printArg(plan: Plan, step: Step, arg: Arg, at: number): string {
  if (arg.slot !== undefined) return slotName(arg.slot);
  if (arg.blob !== undefined) return printBlob(plan, step, arg.blob, at);
  if (arg.blobOffset !== undefined) return `blob${arg.blobOffset.blob}+${arg.blobOffset.offset}`;
  if (arg.holeOffset !== undefined) return `hole+${hex(arg.holeOffset)}`;
  const value = arg.immediate ?? 0n;
  if (step.op === 'clone_process' || step.op === 'clone_thread') return `p${value}`;
  return decodeArgument(step.op, value, at);
}

function printBlob(plan: Plan, step: Step, index: number, at: number): string {
  const blob = plan.blobs[index];
  if (blob === undefined) return `blob${index}?`;
  if (isTextArgument(step.op, at)) return quote(blob.data);
  const content = blobContent(plan, blob);
  return content === '' ? `blob${index}` : `blob${index}{${content}}`;
}

/** Small structures as words, with what is filled in at run time by name. */
function blobContent(plan: Plan, blob: Blob): string {
  if (blob.data.length === 0) return blob.lengthBytes === 0n ? '' : `${blob.lengthBytes} bytes`;
  const named = blob.relocations.map((relocation) =>
    relocation.blob === undefined
      ? `+${relocation.offset}:${slotName(relocation.slot32 ?? relocation.slot64 ?? 0)}`
      : `+${relocation.offset}:blob${relocation.blob}[${plan.blobs[relocation.blob]?.data.length ?? '?'}]`,
  );
  const tail = named.length === 0 ? '' : ` ${named.join(' ')}`;
  if (blob.data.length > 64) return `${blob.data.length} bytes${tail}`;
  const view = new DataView(blob.data.buffer, blob.data.byteOffset, blob.data.byteLength);
  if (blob.data.length % 8 === 0) {
    const words: string[] = [];
    for (let offset = 0; offset < blob.data.length; offset += 8)
      words.push(hexOrDecimal(view.getBigUint64(offset, true)));
    return `${words.join(' ')}${tail}`;
  }
  return `${Buffer.from(blob.data).toString('hex')}${tail}`;
}

function quote(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  const text = Buffer.from(end < 0 ? bytes : bytes.subarray(0, end)).toString('utf8');
  return JSON.stringify(text.length > kTextLimit ? `${text.slice(0, kTextLimit)}…` : text);
}

function printFills(plan: Plan, task: PlanTask, index: number): string[] {
  const lines = task.uffdRanges.map(
    ({ address, lengthBytes }) =>
      `p${index} register ${hex(address)}+${hex(lengthBytes)} at ${slotName(task.uffdSlot)}`,
  );
  for (const fill of task.fills) {
    const method = fill.method === 0 ? 'uffd' : 'mem ';
    lines.push(
      `p${index} ${method} ${hex(fill.address)} ${fill.pageCount} pages <- "${plan.pageFiles[fill.pageFile] ?? '?'}"+${hex(fill.fileOffsetBytes)}`,
    );
  }
  return lines;
}

function printConnection(connection: Connection, index: number): string[] {
  const { task, fd, lock, calls, lastCalls, from } = connection;
  const line = (call: SocketCall): string => `c${index}  ${kSocketCalls[call.kind] ?? '?'}  ${call.note}`.trimEnd();
  return [
    withFrom(`c${index}  fd ${fd} of p${task}${lock === '' ? '' : `, unlock table "${lock}"`}`, from),
    ...calls.map(line),
    `c${index}  packets come`,
    ...lastCalls.map(line),
  ];
}

function printRelease(task: PlanTask, index: number): string {
  const registers = task.release?.registers ?? new Uint8Array(0);
  const view = new DataView(registers.buffer, registers.byteOffset, registers.byteLength);
  const word = (at: number): string => (registers.length >= 8 * (at + 1) ? hex(view.getBigUint64(8 * at, true)) : '?');
  return (
    `p${index} ip=${word(16)} sp=${word(19)} ax=${word(10)} fs_base=${word(21)} ` +
    `xstate=${task.release?.xstate.length ?? 0} mask=${hex(task.release?.signalMask ?? 0n)}`
  );
}

const slotName = (slot: number): string => `s${slot}`;
const hex = (value: bigint): string => `0x${value.toString(16)}`;
const hexOrDecimal = (value: bigint): string => (value < 4096n ? String(value) : hex(value));
const shorten = (digest: string): string => (digest.length > 24 ? `${digest.slice(0, 19)}…` : digest);
const withFrom = (text: string, from: string): string =>
  from === '' ? text : `${text.padEnd(kBodyWidth)} from ${from}`;
