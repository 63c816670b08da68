import assert from 'node:assert/strict';
import type { Plan } from '../nativecore/index.js';
import type { PartialMessage } from '../oci-spec/protobuf/codec.js';
import { refuseLazyPages } from './lazy-pages.js';

const kCloneNewUser = 0x10000000n;
const kCloneNewPid = 0x20000000n;

describe('a lazy restore', () => {
  const plan = (cloneFlags: bigint, more: PartialMessage<Plan> = {}): PartialMessage<Plan> => ({
    tasks: [{ cloneFlags, phases: [] }],
    pageFiles: ['pages-1.img'],
    ...more,
  });
  const refusal = (refused: PartialMessage<Plan>, userfaultfd = true): string => {
    try {
      refuseLazyPages('restore container "c"', refused, userfaultfd);
    } catch (error) {
      return (error as Error).message;
    }
    return '';
  };

  it('is refused where it cannot be served, in a sentence that says why', () => {
    assert.equal(refusal(plan(kCloneNewPid)), '');
    assert.match(refusal(plan(kCloneNewPid), false), /this kernel has no userfaultfd/);
    assert.match(refusal(plan(0n)), /no pid namespace of its own/);
    assert.match(refusal(plan(kCloneNewPid | kCloneNewUser)), /has a user namespace/);
    const unshares = [{ phase: 1, steps: [{ op: 'unshare', args: [{ immediate: kCloneNewUser }] }] }];
    assert.match(
      refusal(plan(kCloneNewPid, { tasks: [{ cloneFlags: kCloneNewPid, phases: unshares }] })),
      /has a user namespace/,
    );
    const device = { externals: [{ name: '/dev/userfaultfd', slot: 1, descriptor: 11 }] };
    assert.equal(refusal(plan(kCloneNewPid | kCloneNewUser, device)), '');
  });
});
