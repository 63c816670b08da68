import assert from 'node:assert/strict';
import { Phase } from '../plan/builder.js';
import { FileFixture, stepsOf } from './file-fixture.js';

describe('directories of a task', () => {
  it('changes root before the working directory, both opened from the root of the namespace', () => {
    const fixture = new FileFixture();
    fixture.task({ nsPid: 1, root: '/jail', cwd: '/jail/tmp', umask: '0077' });
    const verbs = stepsOf(fixture.compile(), 1, Phase.DESCRIPTORS).filter((step) => !step.startsWith('close_range'));
    assert.match(
      verbs.join(' | '),
      /openat2 s2 "\/jail\/tmp".*openat2 s2 "\/jail" .*fchdir s6 \| chroot "." \| close s6 \| fchdir s4 \| close s4 \| umask 63/,
    );
  });
});
