import assert from 'node:assert/strict';
import { Phase } from '../plan/builder.js';
import { FileFixture, kHostPidOffset, stepsOf } from './file-fixture.js';

describe('descriptor tables', () => {
  it('puts every file on its numbers and closes all between and above', () => {
    const fixture = new FileFixture();
    const file = fixture.open({ link: '/a' });
    fixture.task({ nsPid: 1, fds: { 0: file, 1: file, 5: file }, closeOnExec: [5] });
    assert.deepEqual(stepsOf(fixture.compile(), 1, Phase.DESCRIPTORS).slice(0, 5), [
      'close_range 0 127 0',
      'dup3 s4 0 0',
      'dup3 s4 1 0',
      'dup3 s4 5 524288',
      'close_range 129 4294967295 0',
    ]);
    assert.deepEqual(stepsOf(fixture.compile(), 1, Phase.THREADS), ['close_range 128 4294967295 0']);
  });

  it('opens what only one of them refers to with its number, where no lower one is free', () => {
    const fixture = new FileFixture();
    const [shared, ...own] = ['/shared', '/a', '/b', '/c', '/d'].map((link) => fixture.open({ link }));
    const [a, b, c, d] = own;
    fixture.task({ nsPid: 1, fds: { 0: shared!, 1: shared!, 2: a!, 5: b!, 6: c!, 60: d! }, closeOnExec: [6] });
    const ctx = fixture.compile();
    const steps = stepsOf(ctx, 1, Phase.DESCRIPTORS).map((step) => step.replace(/ <([0-9a-f]{8}).*/, ' $1'));
    assert.deepEqual(steps.slice(0, 13), [
      'close_range 0 127 0',
      'dup3 s4 0 0',
      'dup3 s4 1 0',
      'openat2 s2 "/a" 02010000',
      'dup3 s2 3 524288',
      'dup3 s2 4 524288',
      'openat2 s2 "/b" 02010000',
      'openat2 s2 "/c" 02010800',
      'openat2 s2 "/d" 02010800',
      'dup3 s5 60 0',
      'close s5',
      'close_range 3 4 0',
      'close_range 129 4294967295 0',
    ]);
    const results = ctx.tasks
      .get(1)
      ?.builder.message()
      .phases?.find((candidate) => candidate?.phase === Phase.DESCRIPTORS)
      ?.steps?.filter((step) => step?.op === 'openat2')
      .map((step) => step?.hasExpected === true && step.expected);
    assert.deepEqual(results?.slice(0, 4), [2n, 5n, 6n, false]);
  });

  it('holds files above the highest number of any task and of what is inherited', () => {
    const fixture = new FileFixture();
    const file = fixture.open({ link: '/a' });
    fixture.task({ nsPid: 1, fds: { 0: file } });
    fixture.task({ nsPid: 2, parent: 1, fds: { 1000: file } });
    const ctx = fixture.compile({ inherited: new Map([['x', 1200]]) });
    assert.equal(ctx.highFdBase, 1201);
    assert.equal(stepsOf(ctx, 1, Phase.FILES).filter((step) => step.startsWith('prlimit64')).length, 3);
  });

  it('opens a file once that several tasks have', () => {
    const fixture = new FileFixture();
    const file = fixture.open({ link: '/a' });
    fixture.task({ nsPid: 1, fds: { 3: file } });
    fixture.task({ nsPid: 2, parent: 1, fds: { 7: file } });
    const ctx = fixture.compile();
    assert.equal(stepsOf(ctx, 1, Phase.FILES).filter((step) => step.includes('"/a"')).length, 1);
    assert.deepEqual(stepsOf(ctx, 2, Phase.FILES), []);
    assert.equal(stepsOf(ctx, 2, Phase.DESCRIPTORS)[1], 'dup3 s4 7 0');
  });

  it('lets a child share the table of its parent', () => {
    const fixture = new FileFixture();
    const file = fixture.open({ link: '/a' });
    fixture.task({ nsPid: 1, fds: { 3: file } });
    fixture.task({ nsPid: 2, parent: 1, fds: { 3: file }, tableOf: 1 });
    const ctx = fixture.compile();
    assert.equal(ctx.tasks.get(2)?.builder.cloneFlags, 0x400n);
    assert.deepEqual(stepsOf(ctx, 2, Phase.DESCRIPTORS), []);
    // Directories are opened when the owner has filled the table.
    assert.ok(stepsOf(ctx, 2, Phase.MEMORY).some((step) => step.startsWith('fchdir')));
  });

  it('refuses a table that is out of bounds', () => {
    const fixture = new FileFixture();
    fixture.task({ nsPid: 1, fds: { 2_000_000: fixture.open({ link: '/a' }) } });
    assert.throws(() => fixture.compile(), /names descriptor 2000000/);
  });

  it('signals the owner of a file by its new pid', () => {
    const fixture = new FileFixture();
    const owner = Buffer.alloc(8);
    owner.writeInt32LE(1, 0);
    owner.writeInt32LE(1 + kHostPidOffset, 4);
    const file = fixture.open({ link: '/a', owner, signal: 29 });
    fixture.task({ nsPid: 1, fds: { 3: file } });
    const steps = stepsOf(fixture.compile(), 1, Phase.DESCRIPTORS);
    assert.ok(steps.includes('fcntl 3 10 29'));
    assert.ok(steps.includes('fcntl 3 15 <0100000001000000>'));
  });
});
