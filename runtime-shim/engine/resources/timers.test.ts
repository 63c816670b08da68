import assert from 'node:assert/strict';
import { Phase } from '../../../nativecore/schema/messages.js';
import { compilePlan } from '../compile.js';
import { decodeImages } from '../decode.js';
import { compileOptions, kernel, MemoryImages, readCapture } from '../recorded.js';
import { parseTimers } from './timers.js';

const text = `ID: 1
signal: 60/00007fff86fd46c8
notify: signal/pid.2634
ClockID: 0
ID: 0
signal: 34/(null)
notify: signal/tid.2635
ClockID: 1
ID: 7
signal: 0/0
notify: none/pid.2634
ClockID: -6
`;

describe('POSIX timers', () => {
  it('are read as /proc prints them', () => {
    assert.deepEqual(parseTimers(Buffer.from(text)), [
      { id: 1, signal: 60, value: 0x7fff86fd46c8n, notify: 0, notifyPid: 2634, clock: 0 },
      { id: 0, signal: 34, value: 0n, notify: 4, notifyPid: 2635, clock: 1 },
      { id: 7, signal: 0, value: 0n, notify: 1, notifyPid: 2634, clock: -6 },
    ]);
    assert.deepEqual(parseTimers(new Uint8Array(0)), []);
  });

  it('get their ids by counting where the kernel knows no better', () => {
    const model = decodeImages(new MemoryImages(readCapture('threads')));
    const { plan } = compilePlan(model, {
      ...compileOptions,
      shellJob: true,
      kernel: { ...kernel, timerRestoreIds: false },
    });
    const steps = plan.tasks[0]!.phases.find(({ phase }) => phase === Phase.THREADS)!.steps;
    assert.deepEqual(
      steps.filter(({ op }) => op.startsWith('timer_')).map(({ op }) => op),
      ['timer_create', 'timer_delete', 'timer_create'],
    );
    assert.ok(!steps.some(({ op, args }) => op === 'prctl' && args[0]?.immediate === 77n));
  });

  it('refuse an id that is too far to count to', () => {
    const capture = readCapture('threads');
    const task = capture.tasks[0]!;
    task.timers = Buffer.from(Buffer.from(task.timers).toString('latin1').replace('ID: 1', 'ID: 1000000'));
    for (const timer of task.posixTimers) timer.id = 1000000;
    const model = decodeImages(new MemoryImages(capture));
    const old = compilePlan(model, {
      ...compileOptions,
      shellJob: true,
      kernel: { ...kernel, timerRestoreIds: false },
    });
    assert.deepEqual(
      old.objections.map(({ code }) => code),
      ['KERNEL_FEATURE_MISSING'],
    );
    assert.deepEqual(compilePlan(model, { ...compileOptions, shellJob: true }).objections, []);
  });
});
