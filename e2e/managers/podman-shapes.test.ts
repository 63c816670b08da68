// Containers of many shapes: what podman's options make of a container has to
// be there after a restore, here and from an archive.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { openFor } from '../support/open-manager.js';
import { targetDirectory } from '../support/paths.js';
import { Podman } from '../support/podman.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';

interface Shape {
  readonly options: readonly string[];
  /** A command inside, which says the same before and after. */
  readonly look: string;
  readonly says: RegExp;
}

const shapes: Readonly<Record<string, Shape>> = {
  'a root file system that is read only, and a tmpfs': {
    options: ['--read-only', '--tmpfs', '/scratch:size=1m'],
    look: 'touch /no 2>&1; [ -e /scratch/x ] || echo kept >/scratch/x; cat /scratch/x',
    says: /Read-only file system\nkept$/,
  },
  'few capabilities, and no new privileges': {
    options: ['--cap-drop', 'all', '--cap-add', 'chown', '--security-opt', 'no-new-privileges'],
    look: 'grep -E "^(CapEff|CapBnd|NoNewPrivs|Seccomp):" /proc/1/status',
    says: /CapEff:\t0000000000000001\nCapBnd:\t0000000000000001\nNoNewPrivs:\t1\nSeccomp:\t2$/,
  },
  'a host name, variables, a directory and groups of its own': {
    options: ['--hostname', 'there', '--env', 'A=b', '--workdir', '/root', '--group-add', '77'],
    look: 'hostname; tr "\\0" "\\n" </proc/1/environ | grep ^A=; readlink /proc/1/cwd; grep ^Groups /proc/1/status',
    says: /^there\nA=b\n\/root\nGroups:\t.*\b77\b/,
  },
  // Not the host's IPC: a restore puts its /dev/shm back, and podman's own locks with it (docs/managers.md).
  "the host's network and name": {
    options: ['--network', 'host', '--uts', 'host'],
    look: 'for n in net uts; do readlink /proc/1/ns/$n; done',
    says: /^net:\S+\nuts:\S+$/,
  },
  'settings of the kernel, and limits of its processes': {
    // podman 4 forgets the limits of its configuration where one is given.
    options: ['nofile=4096:4096', 'nproc=4096:4096', 'core=1:1']
      .flatMap((limit) => ['--ulimit', limit])
      .concat('--sysctl', 'kernel.msgmax=4096'),
    look: 'cat /proc/sys/kernel/msgmax; grep "Max core" /proc/1/limits',
    says: /^4096\nMax core file size +1 +1 /,
  },
};

describe('podman containers with', () => {
  const bed = useTestBed();
  let podman: Podman;

  beforeEach(async function () {
    podman = await openFor(this, bed, ['podman'], () => Podman.open(join(bed.directory, 'podman')));
  });

  async function cycles(check: () => Promise<void>): Promise<void> {
    await check();
    await podman.must('container', 'checkpoint', 'c');
    await podman.must('container', 'restore', 'c');
    await check();
    const archive = join(bed.directory, 'c.tar');
    await podman.must('container', 'checkpoint', '--export', archive, 'c');
    await podman.must('rm', 'c');
    await podman.must('container', 'restore', '--import', archive);
    await check();
  }

  for (const [what, { options, look, says }] of Object.entries(shapes)) {
    it(`${what} have them after a restore`, async () => {
      await podman.start('c', ...options);
      let first: string | undefined;
      await cycles(async () => {
        await podman.count('c');
        const said = await podman.must('exec', 'c', 'sh', '-c', look);
        assert.match(said, says);
        assert.equal(said, (first ??= said));
      });
    });
  }

  it('locked files have them locked after a restore', async () => {
    // It looks at its locks itself, from a process that does not have them; on an overlay here.
    const volume = ['--volume', `${targetDirectory}:/targets:ro`];
    await podman.must('run', '-d', '--name', 'c', '--network', 'none', ...volume, 'box', '/targets/file_locks');
    const said = async (word: string): Promise<void> => {
      await waitFor(`the container to say ${word}`, async () => {
        const lines = await podman.must('logs', 'c');
        assert.doesNotMatch(lines, /FAIL/);
        return lines.includes(word) ? true : undefined;
      });
    };
    await cycles(async () => await said('READY'));
    await podman.must('exec', 'c', 'touch', '/check');
    await said('OK');
  });

  it('two streams write to the log of each after a restore', async () => {
    const script = 'n=0; while :; do n=$((n + 1)); echo $n; echo error $n >&2; sleep 0.02; done';
    await podman.must('run', '-d', '--name', 'c', '--network', 'none', 'box', 'sh', '-c', script);
    let last = 0;
    await cycles(async () => {
      await waitFor('lines of both', async () => {
        const { stdout, stderr } = await podman.run('logs', 'c');
        const numbers = [stdout, stderr].map((text) => Number(/(\d+)\n?$/.exec(text)?.[1] ?? 0));
        assert.doesNotMatch(stdout, /error/);
        assert.doesNotMatch(stderr.replace(/^error \d+$/gm, ''), /\d/);
        return numbers.every((number) => number > last) ? (last = Math.min(...numbers)) : undefined;
      });
    });
  });

  it('a standard input go on reading it', async () => {
    // conmon closes the pipe when whoever was attached goes; a restore gives a new one.
    const script = 'while :; do if read line; then echo "<$line>"; else sleep 0.02; fi; done';
    await podman.must('run', '-d', '-i', '--name', 'c', '--network', 'none', 'box', 'sh', '-c', script);
    let lines = 0;
    await cycles(async () => {
      const line = `line ${(lines += 1)}`;
      await podman.feed('c', `${line}\n`, async () => (await podman.must('logs', 'c')).includes(`<${line}>`));
    });
  });

  it('a user namespace are themselves after a restore', async () => {
    await podman.start('c', '--uidmap', '0:100000:2000', '--gidmap', '0:100000:2000');
    await cycles(async () => {
      await podman.count('c');
      assert.match(await podman.must('exec', 'c', 'cat', '/proc/1/uid_map'), /^ +0 +100000 +2000$/);
    });
  });
});
