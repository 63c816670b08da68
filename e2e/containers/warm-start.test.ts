// Containers that start warm: the poststart hook takes a checkpoint when the
// program is ready, and the next "create" with the same annotations is a restore.
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Container } from '../support/container.js';
import { stasisProgram } from '../support/paths.js';
import { isAlive, processesWhere, programOf, readOrEmpty } from '../support/processes.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';

/** Says once that it begins, and counts: a second beginning is a cold start. */
const slow =
  'echo begin; sleep 0.3; echo ready; touch /run/ready; nc -l -p 4711 >/dev/null & n=0; while :; do n=$((n + 1)); echo $n; sleep 0.02; done';

describe('hooks of a container', () => {
  const bed = useTestBed();

  it('are run at checkpoint and restore as runc runs them, and at a warm create with poststart', async () => {
    const record = join(bed.directory, 'hooks');
    const names = ['prestart', 'createRuntime', 'createContainer', 'startContainer', 'poststart', 'poststop'];
    const container = await bed.prepare({
      args: ['sh', '-c', slow],
      adjust: (spec) => {
        spec.annotations = { 'org.stasis.restore': join(bed.directory, 'images') };
        spec.hooks = Object.fromEntries(
          // startContainer's is run inside.
          names.map((name) => [name, [{ path: '/bin/sh', args: ['sh', '-c', `echo ${name} >>${record} || :`] }]]),
        );
      },
    });
    const ran = (): string[] => {
      const lines = readOrEmpty(record).split('\n').filter(Boolean);
      rmSync(record, { force: true });
      return lines;
    };
    await createAndStart(container);
    assert.deepEqual(ran(), ['prestart', 'createRuntime', 'createContainer', 'poststart']);
    await container.waitForOutput(/ready/);
    await container.checkpoint();
    assert.deepEqual(ran(), ['poststop']);
    await container.restore();
    assert.deepEqual(ran(), ['prestart', 'createRuntime']);
    await container.must(['delete', '--force', container.id]);
    assert.deepEqual(ran(), ['poststop']);
    // The images are where the annotation looks for them.
    await createAndStart(container);
    assert.deepEqual(ran(), ['prestart', 'createRuntime', 'poststart']);
    await goesOn(container);
    await container.must(['delete', '--force', container.id]);
    assert.deepEqual(ran(), ['poststop']);
  });
});

describe('a warm start', () => {
  const bed = useTestBed();

  async function prepare(when: string, archive: string, more: Record<string, string> = {}): Promise<Container> {
    return await bed.prepare({
      args: ['sh', '-c', slow],
      adjust: (spec) => {
        spec.annotations = { 'org.stasis.restore': archive, 'org.stasis.checkpoint-when': when, ...more };
        spec.hooks = { poststart: [{ path: stasisProgram, args: ['stasis', 'hook'] }] };
      },
    });
  }

  for (const [when, name] of [
    ['tcp:4711', 'c.tar'],
    ['file:/run/ready', 'images'],
    ['log:^ready$', 'c.tar.zst'],
    ['seconds:0.5', 'c.tar'],
  ] as const) {
    it(`goes on from the checkpoint that the hook takes at ${when}, to ${name}`, async () => {
      const archive = join(bed.directory, name);
      const container = await prepare(when, archive);
      await createAndStart(container);
      await waitFor('the checkpoint', () => (existsSync(archive) ? true : undefined), {
        seen: () => `${container.output()} ${readOrEmpty(`${archive}.log`)}`,
      });
      await waitFor('the hook to end', () => (hooksAtWork().length === 0 ? true : undefined));
      container.assertUntouched();
      await goesOn(container);
      await container.must(['delete', '--force', container.id]);
      const before = container.output();

      await createAndStart(container);
      await goesOn(container);
      const after = container.output().slice(before.length);
      assert.doesNotMatch(after, /begin/, 'it has started from the beginning');
      assert.match(readFileSync(`${archive}.log`, 'utf8'), /starts cold[^]*is warm/);
      assert.deepEqual(
        readdirSync(bed.directory).filter((left) => left.startsWith('.stasis')),
        [],
      );
      await container.must(['delete', '--force', container.id]);
    });
  }

  it('is a cold one where nothing asks for it, or the checkpoint is not there', async () => {
    const container = await prepare('file:/never', join(bed.directory, 'none.tar'), {
      'org.stasis.checkpoint-deadline': '1',
    });
    await createAndStart(container);
    await container.waitForOutput(/begin/);
    const log = join(bed.directory, 'none.tar.log');
    await waitFor('a sentence of the hook', () => (/level=error/.test(readOrEmpty(log)) ? true : undefined));
    assert.match(
      readFileSync(log, 'utf8'),
      /level=error msg="cannot checkpoint container \\"c1\\" when it is warm: file:\/never has not come true within 1 s/,
    );
    await container.must(['delete', '--force', container.id]);
  });

  it('is refused in one sentence, with nothing left, where the checkpoint is none', async () => {
    const directory = join(bed.directory, 'empty');
    mkdirSync(directory);
    const container = await prepare('seconds:1', directory);
    const refused = await container.runDetached(['create', '--bundle', container.bundle, container.id]);
    assert.notEqual(refused.exitCode, 0);
    assert.match(refused.stderr, /cannot read images from .*"inventory.img" is missing/);
    assert.equal(container.hasStateDirectory(), false);
  });

  it('never holds up the start, and the hook ends with its container', async () => {
    const archive = join(bed.directory, 'c.tar');
    const container = await prepare('file:/never', archive);
    await createAndStart(container);
    await container.waitForOutput(/begin/);
    assert.equal(hooksAtWork().length, 1);
    const pid = await container.initPid();
    await container.must(['delete', '--force', container.id]);
    await waitFor('the hook to end', () => (hooksAtWork().length === 0 && !isAlive(pid) ? true : undefined));
    assert.equal(existsSync(archive), false);
    assert.doesNotMatch(readFileSync(`${archive}.log`, 'utf8'), /error/);
  });
});

/** Other hooks may be at work on this machine: those of the tests are our launcher, or our node where it has no image. */
function hooksAtWork(): number[] {
  const own = ['bin/stasis', 'lib/stasis/node'].map((name) => join(stasisProgram, '../..', name));
  return processesWhere((pid) => {
    const words = readOrEmpty(`/proc/${pid}/cmdline`).split('\0');
    return words.includes('hook') && own.includes(programOf(pid) ?? '');
  });
}

async function createAndStart(container: Container): Promise<void> {
  await container.mustRunDetached(['create', '--bundle', container.bundle, container.id]);
  assert.equal((await container.state()).status, 'created');
  await container.must(['start', container.id]);
}

async function goesOn(container: Container): Promise<void> {
  const before = container.output().length;
  await waitFor('more output', () => (container.output().length > before + 20 ? true : undefined));
}
