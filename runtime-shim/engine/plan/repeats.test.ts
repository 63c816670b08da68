import assert from 'node:assert/strict';
import { Phase, PlanBuilder } from './builder.js';
import { neededHoleBytes } from './hole.js';
import { printPlan, printStep } from './print.js';
import { countSteps, stepAt } from './repeats.js';

const kPage = 4096n;

describe('steps that are alike', () => {
  const planned = (count: number) => {
    const builder = new PlanBuilder();
    const task = builder.addTask('process', 0, [], 'pstree[1]');
    task.step(Phase.MEMORY, 'munmap', [0n, kPage], { from: 'before' });
    const numbers = Array.from({ length: count }, (_, page) => [BigInt(page) * kPage, kPage, 3n]).flat();
    task.steps(Phase.MEMORY, 'mprotect', 3, numbers, { from: 'mm[1]', tolerate: [12] });
    task.step(Phase.MEMORY, 'close', [7], { from: 'after' });
    return builder.message('');
  };

  it('are one message, and as many steps to whoever counts, prints or asks for one', () => {
    const plan = planned(3);
    const [phase] = plan.tasks[0]!.phases;
    assert.equal(phase?.steps.length, 3);
    assert.equal(countSteps(phase.steps), 5);
    const lines = printPlan(plan)
      .split('\n')
      .filter((line) => line.startsWith('p0.'));
    assert.deepEqual(
      lines.map((line) => line.replace(/ +/g, ' ')),
      [
        'p0.0001 munmap 0x0 0x1000 from before',
        'p0.0002 mprotect 0x0 0x1000 r|w or errno 12 from mm[1]',
        'p0.0003 mprotect 0x1000 0x1000 r|w or errno 12 from mm[1]',
        'p0.0004 mprotect 0x2000 0x1000 r|w or errno 12 from mm[1]',
        'p0.0005 close 7 from after',
      ],
    );
    assert.match(printStep(plan, { task: 0, phase: Phase.MEMORY, step: 3 })?.line ?? '', /^p0\.0004 +mprotect +0x2000/);
    assert.equal(stepAt(phase.steps, 4)?.from, 'after');
    assert.equal(stepAt(phase.steps, 5), undefined);
  });

  it('need room in the hole, each', () => {
    const more = neededHoleBytes(planned(100_000)) - neededHoleBytes(planned(1));
    assert.ok(more >= 99_999n * 96n, `${more} bytes`);
  });

  it('are left out where there are none', () => {
    assert.equal(countSteps(planned(0).tasks[0]!.phases[0]!.steps), 2);
  });
});
