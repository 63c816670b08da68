import assert from 'node:assert/strict';
import { StasisError } from '../errors/index.js';
import { refuseUnlessAllowed } from './container.js';
import { TRANSITIONS, type Status, type Verb } from './lifecycle.js';

const allowed: Readonly<Record<Verb, readonly Status[]>> = {
  checkpoint: ['running', 'paused'],
  'checkpoint --leave-running': ['running', 'paused'],
  restore: ['absent'],
};

describe('lifecycle', () => {
  for (const [status, verbs] of Object.entries(TRANSITIONS) as [Status, Record<Verb, unknown>][]) {
    for (const verb of Object.keys(verbs) as Verb[]) {
      const may = allowed[verb].includes(status);
      it(`${may ? 'allows' : 'refuses'} ${verb} of a container that is ${status}`, () => {
        if (may) refuseUnlessAllowed('web', status, verb);
        else
          assert.throws(
            () => refuseUnlessAllowed('web', status, verb),
            (error) => error instanceof StasisError && error.kind === 'conflict' && error.hint !== undefined,
          );
      });
    }
  }

  it('leaves a paused container paused when it is to run on', () => {
    assert.deepEqual(TRANSITIONS.paused['checkpoint --leave-running'], { next: 'paused' });
  });
});
