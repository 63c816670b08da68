// A restored container is a first-class one: every verb works on it, through
// stasis and through the base runtime itself.
import assert from 'node:assert/strict';
import {
  copyFileSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { isFrozen, processesIn } from '../support/cgroups.js';
import type { Container } from '../support/container.js';
import { isAlive, startTicks } from '../support/processes.js';
import { lastLine, mustRun } from '../support/run.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';
import { assertWithoutGap } from '../support/counting.js';

const counter = ['sh', '-c', 'trap "exit 7" TERM; n=0; while :; do n=$((n + 1)); echo $n; sleep 0.02; done'];

describe('the life of a container', () => {
  const bed = useTestBed();

  it('goes on five times in a row', async () => {
    const container = await bed.start({ args: counter });
    await container.waitForOutput(/^3$/m);
    await container.cycle(5);
    await assertCounting(container);
    assertWithoutGap(container.output().trimEnd().split('\n').map(Number));
  });

  it('stops and leaves no state with a plain checkpoint', async () => {
    const container = await bed.start({ args: counter });
    await container.waitForOutput(/^3$/m);
    const pid = await container.initPid();
    await container.checkpoint();
    assert.equal(isAlive(pid), false);
    assert.equal(container.hasStateDirectory(), false);
    assert.deepEqual(processesIn(container.cgroupPath), []);
  });

  it('goes on at once with --leave-running, and the images can be restored later', async () => {
    const container = await bed.start({ args: counter });
    await container.waitForOutput(/^3$/m);
    const pid = await container.initPid();
    const ticks = startTicks(pid);
    await container.checkpoint('images', ['--leave-running']);
    assert.equal(startTicks(pid), ticks, 'it is another process now');
    container.assertUntouched();
    await assertCounting(container);
    await container.must(['delete', '--force', container.id]);
    await container.restore();
    await assertCounting(container);
  });

  it('accepts a paused container and leaves it paused', async () => {
    const container = await bed.start({ args: counter });
    await container.waitForOutput(/^3$/m);
    await container.must(['pause', container.id]);
    await container.checkpoint('images', ['--leave-running']);
    assert.equal(isFrozen(container.cgroupPath), true, 'it is not paused any more');
    assert.equal((await container.state()).status, 'paused');
    await container.must(['resume', container.id]);
    await assertCounting(container);
    container.assertUntouched();
    await container.must(['pause', container.id]);
    await container.checkpoint('images-2');
    assert.equal(container.hasStateDirectory(), false);
    await container.restore('images-2');
    await assertCounting(container);
  });

  for (const through of ['stasis', 'runc'] as const) {
    it(`serves list, state, ps, events, exec, pause, resume, kill and delete of ${through} after a restore`, async () => {
      const container = await bed.start({ args: counter });
      await container.waitForOutput(/^3$/m);
      await container.cycle();
      const call = async (...args: string[]): Promise<string> => {
        const result = await container[through](args);
        assert.equal(result.exitCode, 0, `${args.join(' ')}: ${result.stderr}`);
        return result.stdout;
      };
      const listed = JSON.parse(await call('list', '--format', 'json')) as {
        id: string;
        status: string;
        pid: number;
      }[];
      assert.deepEqual(
        listed.map(({ id, status }) => ({ id, status })),
        [{ id: container.id, status: 'running' }],
      );
      const state = JSON.parse(await call('state', container.id)) as { pid: number; bundle: string; status: string };
      assert.equal(state.bundle, container.bundle);
      assert.equal(state.pid, listed[0]?.pid);
      assert.ok((JSON.parse(await call('ps', '--format', 'json', container.id)) as number[]).includes(state.pid));
      const events = JSON.parse(await call('events', '--stats', container.id)) as { type: string };
      assert.equal(events.type, 'stats');
      assert.equal((await call('exec', container.id, 'hostname')).trim(), 'stasis-test');
      assert.match(await call('exec', container.id, 'cat', '/proc/1/comm'), /sh/);
      await call('pause', container.id);
      assert.equal((await container.state()).status, 'paused');
      await call('resume', container.id);
      await assertCounting(container);
      await call('kill', container.id, 'KILL');
      await container.waitForExit(state.pid);
      await call('delete', container.id);
      assert.equal(container.hasStateDirectory(), false);
    });
  }

  it('has the same cgroups, limits and namespaces after a restore', async () => {
    const container = await bed.start({
      args: counter,
      adjust: (spec) => {
        spec.linux.namespaces = [...spec.linux.namespaces.filter(({ type }) => type !== 'cgroup'), { type: 'cgroup' }];
      },
    });
    await container.waitForOutput(/^3$/m);
    const facts = async (): Promise<unknown> => {
      const pid = await container.initPid();
      return {
        cgroups: readFileSync(`/proc/${pid}/cgroup`, 'utf8')
          .split('\n')
          .filter((line) => line.includes(container.id))
          .sort(),
        mounts: readFileSync(`/proc/${pid}/mountinfo`, 'utf8')
          .split('\n')
          .filter(Boolean)
          .map((line) => line.split(' ').slice(3, 6).join(' '))
          // The kernel lists mounts by their numbers, which say nothing about the tree.
          .sort(),
        own: ['pid', 'mnt', 'ipc', 'uts', 'net', 'cgroup'].filter(
          (name) => namespaceOf(pid, name) !== namespaceOf(process.pid, name),
        ),
        interfaces: await container.exec(['ls', '/sys/class/net']),
        loopback: await container.exec(['ip', 'addr', 'show', 'lo']),
        descriptors: readdirSync(`/proc/${pid}/fd`),
      };
    };
    const before = await facts();
    await container.cycle(2);
    assert.deepEqual(await facts(), before);
  });

  it('is led by the configuration file that its annotation names for CRIU, at checkpoint and restore', async () => {
    const file = join(bed.directory, 'criu.conf');
    const container = await bed.start({
      args: counter,
      adjust: (spec) => void (spec.annotations = { 'org.criu.config': file }),
    });
    await container.waitForOutput(/\d/);
    writeFileSync(file, 'auto-dedup\n');
    const sentence = `cannot use CRIU's configuration ${file}: line 1: auto-dedup is not built; take that line out`;
    const refused = await container.stasis(container.checkpointArgs(container.imagesDirectory()));
    assert.equal(refused.exitCode, 1);
    assert.equal(lastLine(refused.stderr), sentence);
    container.assertUntouched();
    writeFileSync(file, 'tcp-established\nfile-locks # for all\n');
    await container.checkpoint();
    writeFileSync(file, 'auto-dedup\n');
    const again = await container.runDetached(container.restoreArgs(container.imagesDirectory()));
    assert.equal(lastLine(again.stderr), sentence);
    assert.equal(container.hasStateDirectory(), false);
    // As for CRIU: a file that is not there says nothing.
    rmSync(file);
    await container.restore();
    await container.cycle();
  });

  it('gives the exit status of a container that was restored in the foreground', async () => {
    const container = await bed.start({ args: counter });
    await container.waitForOutput(/^3$/m);
    await container.checkpoint();
    const args = container.restoreArgs(container.imagesDirectory()).filter((word) => word !== '--detach');
    const foreground = container.runDetached(args);
    const reached = container.output().length;
    await waitFor('the container to count', () => (container.output().length > reached + 10 ? true : undefined));
    await container.kill('TERM');
    assert.equal((await foreground).exitCode, 7);
    // runc's restore in the foreground deletes the container at its end.
    assert.equal(container.hasStateDirectory(), false);
  });

  it('writes the pid file, prints nothing, and leaves init to the caller with --detach', async () => {
    const container = await bed.start({ args: ['sh', '-c', 'while :; do sleep 0.05; done'] });
    await container.checkpoint();
    const pidFile = join(bed.directory, 'restored.pid');
    writeFileSync(container.outputFile, '');
    const result = await container.restore('images', ['--pid-file', pidFile, '--no-pivot', '--no-subreaper']);
    assert.equal(Number(readFileSync(pidFile, 'utf8')), await container.initPid());
    assert.equal(container.output(), '', "stdout is the container's");
    assert.equal(result.stderr, '');
  });

  it('says which scope it needs under the systemd cgroup driver, and that there is no systemd', async () => {
    const container = await bed.start({ args: counter });
    await container.waitForOutput(/^3$/m);
    const images = await container.checkpoint();
    const path = join(container.bundle, 'config.json');
    const text = readFileSync(path, 'utf8');
    const refusal = async (cgroupsPath: string): Promise<string> => {
      writeFileSync(path, text.replaceAll(container.cgroupPath, cgroupsPath));
      const result = await container.stasis(['--systemd-cgroup', ...container.restoreArgs(images)]);
      assert.equal(result.exitCode, 1);
      assert.equal(container.hasStateDirectory(), false);
      return lastLine(result.stderr);
    };
    assert.match(
      await refusal('pods-one.slice:libpod:abc'),
      /in the scope libpod-abc.scope: only systemd can make it, and there is no way to systemd \(.*system_bus_socket: .*systemd\/private: .*\); start systemd or its bus, or use the cgroupfs driver/,
    );
    assert.match(await refusal('/pods/one'), /linux.cgroupsPath must be "slice:prefix:name" for systemd cgroups/);
    writeFileSync(path, text);
    await container.restore();
    await assertCounting(container);
  });

  it('asks a base runtime for its version once, and again when it has been replaced', async () => {
    const runc = (await mustRun('sh', ['-c', 'command -v runc'])).stdout.trim();
    const base = join(bed.directory, 'runc');
    const replace = (): void => {
      copyFileSync(runc, `${base}.new`);
      renameSync(`${base}.new`, base);
    };
    replace();
    const noteOfBase = (): string => {
      const { dev, ino } = statSync(base);
      return `/run/stasis/base-runtime-${dev}-${ino}.json`;
    };
    const note = noteOfBase();
    rmSync(note, { force: true });
    const container = await bed.start({ args: counter, base });
    await container.waitForOutput(/^3$/m);
    const versionAfterRestore = async (): Promise<unknown> => {
      await container.cycle();
      const state = readFileSync(join(container.stateRoot, container.id, 'state.json'), 'utf8');
      return (JSON.parse(state) as { config: { version: unknown } }).config.version;
    };

    const version = await versionAfterRestore();
    // No runc has ever said this: it can only come from the note.
    const altered = readFileSync(note, 'utf8').replace(/spec: [^\\]*/, 'spec: 1.0.77');
    writeFileSync(note, altered);
    assert.equal(await versionAfterRestore(), '1.0.77');
    // The old file is still somewhere: the new one does not get its number.
    renameSync(base, `${base}.old`);
    replace();
    assert.equal(await versionAfterRestore(), version);
    rmSync(noteOfBase());
    // An old note, and a file that has been written to since.
    copyFileSync(runc, `${base}.old`);
    renameSync(`${base}.old`, base);
    assert.equal(await versionAfterRestore(), version);
    rmSync(note);
    await assertCounting(container);
  });

  it('restores under another name', async () => {
    const container = await bed.start({ args: counter });
    await container.waitForOutput(/^3$/m);
    const images = await container.checkpoint();
    const other = await bed.prepare({ id: 'c2', args: counter });
    // The same root file system: what the container has open is in there.
    writeFileSync(
      join(other.bundle, 'config.json'),
      readFileSync(join(container.bundle, 'config.json'), 'utf8').replaceAll(container.cgroupPath, other.cgroupPath),
    );
    await other.mustRunDetached(other.restoreArgs(images));
    await assertCounting(other, container);
    assert.notEqual(processesIn(other.cgroupPath).length, 0);
  });
});

async function assertCounting(container: Container, writer: Container = container): Promise<void> {
  const last = (): number => Math.max(Number(writer.output().trimEnd().split('\n').at(-1)), lastOf(container));
  const reached = last();
  await waitFor('the container to count on', () => (last() > reached + 5 ? true : undefined), {
    seen: () => String(last()),
  });
}

function lastOf(container: Container): number {
  return Number(container.output().trimEnd().split('\n').at(-1) ?? 0);
}

function namespaceOf(hostPid: number, name: string): string {
  return readlinkSync(`/proc/${hostPid}/ns/${name}`);
}
