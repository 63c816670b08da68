import assert from 'node:assert/strict';
import { Phase, type Connection, type Plan, type Step } from '../../../nativecore/schema/messages.js';
import { StasisError } from '../../errors/index.js';
import { compilePlan } from '../compile.js';
import { decodeImages } from '../decode.js';
import { compileOptions, MemoryImages, readCapture } from '../recorded.js';
import { verifyPlan } from './verify.js';

const freshPlan = (): Plan =>
  compilePlan(decodeImages(new MemoryImages(readCapture('credentials'))), { ...compileOptions, shellJob: true }).plan;

const stepsOf = (plan: Plan, task: number, phase: number): Step[] =>
  plan.tasks[task]!.phases.find((candidate) => candidate.phase === phase)!.steps;

const find = (steps: readonly Step[], op: string): Step => steps.find((step) => step.op === op)!;

const none = new Uint8Array(0);
const someConnection: Connection = {
  task: 0,
  fd: 3,
  local: new Uint8Array(16),
  peer: new Uint8Array(16),
  calls: [],
  lastCalls: [],
  lock: '',
  from: 'file[1]',
};

function awaitFill(plan: Plan, phase: number, count: bigint): void {
  const step: Step = {
    op: 'await_fill',
    args: [{ immediate: count }],
    outSlot: 0,
    hasExpected: false,
    expected: 0n,
    toleratedErrnos: [],
    from: '',
    note: '',
    moreArgs: [],
  };
  const { phases } = plan.tasks[0]!;
  const found = phases.find((each) => each.phase === phase);
  if (found !== undefined) found.steps.push(step);
  else
    phases.splice(
      phases.findIndex((each) => each.phase > phase),
      0,
      { phase, steps: [step] },
    );
}

describe('plan verification', () => {
  const wrong: readonly (readonly [string, (plan: Plan) => void, RegExp])[] = [
    ['no hole', (plan) => (plan.hole = undefined), /no hole/],
    ['a hole that is not made of pages', (plan) => (plan.hole!.address += 1n), /no hole/],
    ['phases out of order', (plan) => plan.tasks[0]!.phases.reverse(), /out of order/],
    ['a thread with steps before it exists', (plan) => (plan.tasks[1]!.phases[0]!.phase = Phase.MEMORY), /not its/],
    [
      'another step than a protection while the coordinator fills',
      (plan) => (plan.tasks[0]!.phases.find(({ phase }) => phase === Phase.MEMORY)!.phase = Phase.FILL),
      /wait for it and protect it, nothing else/,
    ],
    ['a wait for more ranges than there are', (plan) => awaitFill(plan, Phase.FILL, 99n), /a number of userfaultfd/],
    ['a wait for memory in another phase', (plan) => awaitFill(plan, Phase.MEMORY, 1n), /filled in phase FILL/],
    ['a slot that is used before it is defined', (plan) => stepsOf(plan, 0, Phase.FILES).reverse(), /used before/],
    ['a slot out of range', (plan) => (plan.slotCount = 1), /out of range/],
    [
      'a slot that is defined twice',
      (plan) => {
        const steps = stepsOf(plan, 0, Phase.FILES).filter((step) => step.outSlot !== 0);
        steps[1]!.outSlot = steps[0]!.outSlot;
      },
      /defined twice/,
    ],
    [
      'a task that nobody creates',
      (plan) => (find(stepsOf(plan, 0, Phase.THREADS), 'clone_thread').op = 'gettid'),
      /nobody creates p1/,
    ],
    ['a parent that is another than the creator', (plan) => (plan.tasks[1]!.parent = 1), /not its child/],
    [
      'a mapping over the hole',
      (plan) => (find(stepsOf(plan, 0, Phase.MEMORY), 'mmap').args[0] = { immediate: plan.hole!.address }),
      /change the hole/,
    ],
    [
      'unaligned memory',
      (plan) => (find(stepsOf(plan, 0, Phase.MEMORY), 'mmap').args[0] = { immediate: 5n }),
      /not one of pages/,
    ],
    [
      'seven arguments',
      (plan) =>
        stepsOf(plan, 0, Phase.MEMORY)[0]!.args.push(...new Array<{ immediate: bigint }>(7).fill({ immediate: 0n })),
      /more than six/,
    ],
    ['half a repeat', (plan) => (find(stepsOf(plan, 0, Phase.MEMORY), 'munmap').moreArgs = [4096n]), /lacks arguments/],
    [
      'a repeat over the hole',
      (plan) => (find(stepsOf(plan, 0, Phase.MEMORY), 'munmap').moreArgs = [plan.hole!.address, 4096n]),
      /change the hole/,
    ],
    [
      'a repeat of more than numbers',
      (plan) => (find(stepsOf(plan, 0, Phase.MEMORY), 'close').moreArgs = [3n]),
      /other arguments than numbers/,
    ],
    [
      'a repeat of a built-in operation',
      (plan) => (find(stepsOf(plan, 0, Phase.THREADS), 'clone_thread').moreArgs = [1n]),
      /no system call/,
    ],
    ['a blob that is not there', (plan) => (plan.blobs.length = 1), /there is no blob/],
    ['a fill outside of its ranges', (plan) => (plan.tasks[0]!.uffdRanges.length = 1), /outside its ranges/],
    ['a fill from no file', (plan) => (plan.pageFiles.length = 0), /page file that is not there/],
    ['ranges without a userfaultfd', (plan) => (plan.tasks[0]!.uffdSlot = 0), /no userfaultfd/],
    ['a connection of nobody', (plan) => plan.connections.push({ ...someConnection, task: 999 }), /no process/],
    ['a connection to nowhere', (plan) => plan.connections.push({ ...someConnection, peer: none }), /no addresses/],
    [
      'a connection with a call of unknown kind',
      (plan) =>
        plan.connections.push({ ...someConnection, calls: [{ kind: 7, level: 0, name: 0, data: none, note: '' }] }),
      /no socket takes/,
    ],
    ['a task without registers', (plan) => (plan.tasks[1]!.release = undefined), /no registers/],
  ];

  it('accepts what the compiler makes', () => verifyPlan(freshPlan()));

  for (const [what, spoil, reason] of wrong) {
    it(`refuses ${what}`, () => {
      const plan = freshPlan();
      spoil(plan);
      assert.throws(
        () => verifyPlan(plan),
        (error) => error instanceof StasisError && error.code === 'BUG' && reason.test(error.message),
      );
    });
  }
});
