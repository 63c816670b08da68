// A container in one file: checkpointed here, restored from a bundle elsewhere,
// with the files that it changed.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import {
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { pack } from '../support/archives.js';
import { processesIn } from '../support/cgroups.js';
import type { Container } from '../support/container.js';
import { stasisProgram } from '../support/paths.js';
import { startPipeline } from '../support/pipeline.js';
import { processState } from '../support/processes.js';
import { lastLine, mustRun, run } from '../support/run.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';

const counter = [
  'sh',
  '-c',
  'echo changed >/data/new; rm /etc/group; n=0; while :; do n=$((n + 1)); echo $n; sleep 0.02; done',
];

/** struct vfs_cap_data, revision 2: CAP_NET_RAW permitted, effective. */
const kNetRaw = '0100000200200000000000000000000000000000';

/** rw-, user 1000 r--, group r--, mask r--, others ---: mode 0640. */
const kReadableBy1000 = '0200000001000600ffffffff02000400e803000004000400ffffffff10000400ffffffff20000000ffffffff';

/** Each as path, name and value. */
async function setAttributes(...attributes: readonly (readonly [string, string, string])[]): Promise<void> {
  const program =
    'import os, sys\nfor w in zip(*[iter(sys.argv[1:])] * 3): os.setxattr(w[0], w[1], bytes.fromhex(w[2]))';
  await mustRun('python3', ['-c', program, ...attributes.flat()]);
}

/** Their values, each named as path and name; "none" where there is none. */
async function attributes(...names: readonly (readonly [string, string])[]): Promise<string[]> {
  const program = `import os, sys
for path, name in zip(*[iter(sys.argv[1:])] * 2):
  print(os.getxattr(path, name).hex() if name in os.listxattr(path) else "none")`;
  return (await mustRun('python3', ['-c', program, ...names.flat()])).stdout.trim().split('\n');
}

describe('archives', () => {
  const bed = useTestBed();

  const start = async (): Promise<Container> => {
    const container = await bed.start({ args: counter });
    await container.waitForOutput(/^3$/m);
    return container;
  };
  /** On another root file system, in another bundle, under another name. */
  const restoreElsewhere = async (file: string, flags: readonly string[] = []): Promise<Container> => {
    const other = await bed.prepare({ id: 'c2', args: counter });
    await other.mustRunDetached(['restore', '--detach', '--bundle', other.bundle, '--archive', file, ...flags, 'c2']);
    return other;
  };
  const assertGoesOn = async (from: Container, other: Container): Promise<void> => {
    const reached = Number(lastLine(from.output()));
    await other.waitForOutput(new RegExp(`^${reached + 5}$`, 'm'));
    const first = Number(other.output().split('\n')[0]);
    assert.ok(first === reached + 1 || first === reached, `it goes on with ${first} after ${reached}`);
  };
  const leftovers = (): string[] => readdirSync(bed.directory).filter((name) => name.startsWith('.stasis-'));

  for (const name of ['a.tar', 'a.tar.gz', 'a.tar.zst']) {
    it(`carry a container to another bundle, with its changed files: ${name}`, async () => {
      const container = await start();
      const before = join(bed.directory, 'before');
      await mustRun('cp', ['-a', container.rootfs, before]);
      await mustRun('rm', [join(before, 'data/new')]);
      await mustRun('sh', ['-c', 'echo root:x:0: >"$1"', 'sh', join(before, 'etc/group')]);
      const file = join(bed.directory, name);
      await container.must(['checkpoint', '--archive', file, '--lower', before, 'c1']);
      assert.equal(container.hasStateDirectory(), false);
      assert.equal(statSync(file).mode & 0o777, 0o600);
      assert.deepEqual(leftovers(), []);
      const verified = await mustRun(stasisProgram, ['verify', file]);
      assert.match(verified.stdout, /sound: archive \(stasis\).*every member has its digest/);
      const other = await restoreElsewhere(file);
      await assertGoesOn(container, other);
      assert.equal(readFileSync(join(other.rootfs, 'data/new'), 'utf8'), 'changed\n');
      assert.equal(existsSync(join(other.rootfs, 'etc/group')), false);
    });
  }

  it('go to standard output, complete when every byte has been taken', async () => {
    const container = await start();
    const file = join(bed.directory, 'piped.tar.gz');
    await mustRun('sh', [
      '-c',
      'set -e; "$1" --root "$2" checkpoint --archive - --compress gzip --ignore-rootfs c1 | cat >"$3"',
      'sh',
      stasisProgram,
      container.stateRoot,
      file,
    ]);
    assert.equal(container.hasStateDirectory(), false);
    const other = await restoreElsewhere(file);
    await assertGoesOn(container, other);
    assert.equal(existsSync(join(other.rootfs, 'data/new')), false);
  });

  it('leave the container running when they cannot be written', async () => {
    const container = await start();
    const full = openSync('/dev/full', 'w');
    try {
      const result = await run(
        stasisProgram,
        ['--root', container.stateRoot, 'checkpoint', '--archive', '-', '--ignore-rootfs', 'c1'],
        { stdout: full },
      );
      assert.equal(result.exitCode, 1);
      assert.match(
        lastLine(result.stderr),
        /cannot write the archive to standard output: ENOSPC \(no space left on device\)/,
      );
    } finally {
      closeSync(full);
    }
    container.assertUntouched();
    const missing = await container.stasis(['checkpoint', '--archive', join(bed.directory, 'no/such/a.tar'), 'c1']);
    assert.equal(missing.exitCode, 1);
    assert.match(lastLine(missing.stderr), /no\/such.*give a path in a directory that exists/);
    container.assertUntouched();
    const reached = Number(lastLine(container.output()));
    await container.waitForOutput(new RegExp(`^${reached + 5}$`, 'm'));
    assert.deepEqual(leftovers(), []);
  });

  for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
    it(`leave the container running after ${signal} in the middle of an archive`, async () => {
      const pipeline = await startPipeline(bed);
      const { container } = pipeline;
      const temporary = join(bed.directory, 'temporary');
      mkdirSync(temporary);
      // Nobody reads: the archive, larger than a pipe, stays in its middle.
      const child = spawn(
        stasisProgram,
        ['--root', container.stateRoot, 'checkpoint', '--archive', '-', container.id],
        {
          stdio: ['ignore', 'pipe', 'pipe'],
          env: { PATH: process.env['PATH'], TMPDIR: temporary },
        },
      );
      const ended = new Promise((resolve) => child.once('exit', resolve));
      const staged = (): string[] => readdirSync(temporary).filter((name) => name.startsWith('.stasis-'));
      await waitFor('the container to stand still, with pages staged', () =>
        processesIn(container.cgroupPath).every((pid) => processState(pid) === 't') &&
        staged().some((name) => readdirSync(join(temporary, name)).length > 0)
          ? true
          : undefined,
      );
      child.kill(signal);
      await waitFor('the container to be released', () =>
        processesIn(container.cgroupPath).every((pid) => processState(pid) !== 't') ? true : undefined,
      );
      // Whoever is not read does not end; nobody reads any more.
      child.stdout.destroy();
      await ended;
      await pipeline.goesOn();
      pipeline.isGapless();
      container.assertUntouched();
      if (signal === 'SIGTERM') assert.deepEqual(staged(), []);
      // The next one takes away what a killed one left.
      await mustRun(
        'sh',
        [
          '-c',
          '"$1" --root "$2" checkpoint --archive - --leave-running "$3" | cat >"$4"',
          'sh',
          stasisProgram,
          container.stateRoot,
          container.id,
          join(bed.directory, 'a.tar'),
        ],
        { env: { PATH: process.env['PATH'] ?? '', TMPDIR: temporary } },
      );
      assert.deepEqual(staged(), []);
      assert.equal((await run(stasisProgram, ['verify', join(bed.directory, 'a.tar')])).exitCode, 0);
    });
  }

  it('keep an older archive whole until the new one is complete', async () => {
    const container = await start();
    const file = join(bed.directory, 'a.tar.zst');
    const checkpoint = ['checkpoint', '--archive', file, '--leave-running', '--ignore-rootfs', 'c1'];
    await container.must(checkpoint);
    const older = readFileSync(file);
    const pid = await container.initPid();
    const refused = await container.stasis([
      'checkpoint',
      '--archive',
      file,
      '--lower',
      join(bed.directory, 'none'),
      'c1',
    ]);
    assert.equal(refused.exitCode, 1);
    assert.deepEqual(readFileSync(file), older);
    assert.equal(await container.initPid(), pid);
    await container.must(checkpoint);
    assert.notDeepEqual(readFileSync(file), older);
    assert.equal((await run(stasisProgram, ['verify', file])).exitCode, 0);
    container.assertUntouched();
    assert.deepEqual(leftovers(), []);
  });

  it('take the upper layer of an overlay, whiteouts and opaque directories included', async () => {
    const directory = bed.directory;
    const container = await bed.prepare({
      args: [
        'sh',
        '-c',
        'rm /data/gone; rm -r /data/opaque; mkdir /data/opaque; echo 2 >/data/opaque/new; echo 3 >/data/changed; ln -s /data/x /data/link; n=0; while :; do n=$((n + 1)); echo $n; sleep 0.02; done',
      ],
    });
    const parts = Object.fromEntries(['layers', 'lower', 'upper', 'work'].map((name) => [name, join(directory, name)]));
    mkdirSync(parts['layers']!);
    await mustRun('mount', ['-t', 'tmpfs', 'layers', parts['layers']!]);
    try {
      for (const name of ['upper', 'work']) mkdirSync(join(parts['layers']!, name));
      await mustRun('mv', [container.rootfs, parts['lower']!]);
      mkdirSync(container.rootfs);
      mkdirSync(join(parts['lower']!, 'data/opaque'));
      for (const name of ['gone', 'changed', 'kept', 'opaque/old'])
        writeFileSync(join(parts['lower']!, 'data', name), '1\n');
      const upper = join(parts['layers']!, 'upper');
      const options = `lowerdir=${parts['lower']},upperdir=${upper},workdir=${join(parts['layers']!, 'work')}`;
      await mustRun('mount', ['-t', 'overlay', 'overlay', '-o', options, container.rootfs]);
      try {
        await container.mustRunDetached(['run', '--detach', '--bundle', container.bundle, container.id]);
        await container.waitForOutput(/^3$/m);
        const file = join(directory, 'a.tar.zst');
        await container.must(['checkpoint', '--archive', file, 'c1']);
        const other = await bed.prepare({ id: 'c2', args: counter });
        mkdirSync(join(other.rootfs, 'data/opaque'));
        for (const name of ['gone', 'changed', 'kept', 'opaque/old'])
          writeFileSync(join(other.rootfs, 'data', name), '1\n');
        await other.mustRunDetached(['restore', '--detach', '--bundle', other.bundle, '--archive', file, 'c2']);
        await assertGoesOn(container, other);
        assert.deepEqual(readdirSync(join(other.rootfs, 'data')).sort(), ['changed', 'kept', 'link', 'opaque']);
        assert.deepEqual(readdirSync(join(other.rootfs, 'data/opaque')), ['new']);
        assert.equal(readFileSync(join(other.rootfs, 'data/changed'), 'utf8'), '3\n');
        await other.destroy();
        // The same through containerd's form, in which deleted files lie in the layer.
        const converted = join(directory, 'containerd.tar');
        await pack(file, '--to', 'containerd', '--output', converted);
        const back = join(directory, 'crio.tar');
        await pack(converted, '--from', 'containerd', '--to', 'cri-o', '--output', back);
        const deleted = await mustRun('tar', ['-xOf', back, 'deleted.files']);
        assert.deepEqual((JSON.parse(deleted.stdout) as string[]).sort(), ['/data/gone', '/data/opaque/old']);
      } finally {
        await container.destroy();
        await mustRun('umount', [container.rootfs]);
      }
    } finally {
      await mustRun('umount', [parts['layers']!]);
    }
  });

  it('take what an overlay holds in part, pipes, attributes and devices, and no device that the spec does not allow', async () => {
    const directory = bed.directory;
    const layers = join(directory, 'layers');
    const container = await bed.prepare({ args: counter });
    mkdirSync(layers);
    await mustRun('mount', ['-t', 'tmpfs', 'layers', layers]);
    try {
      for (const name of ['upper', 'work']) mkdirSync(join(layers, name));
      // The lower layer on one file system with the upper one: redirect_dir renames in place.
      const lower = join(layers, 'lower');
      await mustRun('cp', ['-a', container.rootfs, lower]);
      await mustRun('rm', ['-r', container.rootfs]);
      mkdirSync(container.rootfs);
      mkdirSync(join(lower, 'data/before/deep'), { recursive: true });
      writeFileSync(join(lower, 'data/before/deep/file'), 'below\n');
      writeFileSync(join(lower, 'data/metadata'), 'content\n');
      const upper = `upperdir=${join(layers, 'upper')},workdir=${join(layers, 'work')}`;
      const options = `lowerdir=${lower},${upper},metacopy=on,redirect_dir=on`;
      await mustRun('mount', ['-t', 'overlay', 'overlay', '-o', options, container.rootfs]);
      try {
        await container.mustRunDetached(['run', '--detach', '--bundle', container.bundle, container.id]);
        await container.waitForOutput(/^3$/m);
        const changes = `
          mv before after; chmod 0600 metadata; mkfifo -m 0622 pipe; ln pipe pipe2; mknod null c 1 3; mknod mem c 1 1
          echo ping >ping; chown 300000:300000 ping`;
        await mustRun('sh', ['-ec', `cd "$1"; ${changes}`, 'sh', join(container.rootfs, 'data')]);
        const below = join(container.rootfs, 'data');
        mkdirSync(join(below, 'shared'));
        writeFileSync(join(below, 'shared/private'), '', { mode: 0o600 });
        const [access, byDefault] = ['system.posix_acl_access', 'system.posix_acl_default'];
        await setAttributes(
          [join(below, 'ping'), 'user.note', '00ff0a80'],
          [join(below, 'ping'), 'security.capability', kNetRaw],
          [join(below, 'ping'), access, kReadableBy1000],
          [join(below, 'pipe'), access, kReadableBy1000],
          [join(below, 'after'), 'user.note', '68657265'],
          [join(below, 'shared'), byDefault, kReadableBy1000],
        );
        const file = join(directory, 'a.tar');
        const result = await container.must(['checkpoint', '--archive', file, 'c1']);
        assert.match(
          result.stderr,
          /^warning: "\/data\/mem" is the character device 1:1 and is not carried: the spec does not allow it/m,
        );
        const other = await bed.prepare({ id: 'c2', args: counter });
        mkdirSync(join(other.rootfs, 'data/before'));
        await other.mustRunDetached(['restore', '--detach', '--bundle', other.bundle, '--archive', file, 'c2']);
        await assertGoesOn(container, other);
        const data = join(other.rootfs, 'data');
        assert.deepEqual(readdirSync(data).sort(), [
          'after',
          'metadata',
          'new',
          'null',
          'ping',
          'pipe',
          'pipe2',
          'shared',
        ]);
        assert.equal(readFileSync(join(data, 'after/deep/file'), 'utf8'), 'below\n');
        assert.equal(readFileSync(join(data, 'metadata'), 'utf8'), 'content\n');
        const stat = (name: string): string[] => {
          const { mode, uid, ino, rdev } = statSync(join(data, name));
          return [mode.toString(8), String(uid), String(rdev), name.startsWith('pipe') ? String(ino) : ''];
        };
        assert.deepEqual(stat('pipe').slice(0, 1), ['10640']);
        assert.deepEqual(stat('pipe'), stat('pipe2'));
        assert.deepEqual(stat('metadata').slice(0, 1), ['100600']);
        assert.deepEqual(stat('ping').slice(1, 2), ['300000']);
        assert.deepEqual(stat('null').slice(2, 3), [String(statSync('/dev/null').rdev)]);
        const found = await attributes(
          [join(data, 'ping'), 'security.capability'],
          [join(data, 'ping'), 'user.note'],
          [join(data, 'after'), 'user.note'],
          [join(data, 'ping'), access],
          [join(data, 'pipe'), access],
          [join(data, 'shared'), byDefault],
          // What it would have inherited where it is made anew.
          [join(data, 'shared/private'), access],
        );
        const lists = [kReadableBy1000, kReadableBy1000, kReadableBy1000, 'none'];
        assert.deepEqual(found, [kNetRaw, '00ff0a80', '68657265', ...lists]);
        assert.equal(statSync(join(data, 'shared/private')).mode & 0o777, 0o600);
      } finally {
        await container.destroy();
        await mustRun('umount', [container.rootfs]);
      }
    } finally {
      await mustRun('umount', [layers]);
    }
  });

  it('are refused whole when they were altered, and nothing is made or changed', async () => {
    const container = await start();
    const file = join(bed.directory, 'a.tar');
    const before = join(bed.directory, 'before');
    await mustRun('cp', ['-a', container.rootfs, before]);
    await mustRun('rm', [join(before, 'data/new')]);
    await container.must(['checkpoint', '--archive', file, '--lower', before, 'c1']);
    const other = await bed.prepare({ id: 'c2', args: counter });
    const restore = async (archive: string): Promise<string> => {
      const result = await other.runDetached([
        'restore',
        '--detach',
        '--bundle',
        other.bundle,
        '--archive',
        archive,
        'c2',
      ]);
      assert.equal(result.exitCode, 1);
      assert.equal(other.hasStateDirectory(), false);
      assert.equal(existsSync(join(other.rootfs, 'data/new')), false, 'the root file system was changed');
      return lastLine(result.stderr);
    };
    const damaged = join(bed.directory, 'damaged.tar');
    copyFileSync(file, damaged);
    truncateSync(damaged, statSync(file).size - 4096);
    assert.match(await restore(damaged), /cannot read .*damaged.tar/);
    const bytes = readFileSync(file);
    const at = bytes.indexOf('changed\n');
    assert.ok(at > 0);
    bytes[at]! ^= 1;
    writeFileSync(damaged, bytes);
    assert.match(await restore(damaged), /"rootfs-diff.tar" is not the file that was written/);
    assert.equal((await run(stasisProgram, ['verify', damaged])).exitCode, 6);
  });

  it('are converted to every form and back, and still restore', async () => {
    const container = await start();
    const file = join(bed.directory, 'a.tar.zst');
    await container.must([
      'checkpoint',
      '--archive',
      file,
      '--ignore-rootfs',
      '--image',
      'docker.io/library/busybox',
      'c1',
    ]);
    assert.match((await mustRun(stasisProgram, ['inspect', file])).stdout, /^checkpoint sha256:.* process/);
    let last = file;
    for (const [form, name] of [
      ['podman', 'podman.tar.gz'],
      ['cri-o', 'crio.tar'],
      ['containerd', 'containerd.tar'],
      ['oci', 'layout'],
      ['oci-archive', 'image.tar'],
      ['stasis', 'back.tar.zst'],
    ] as const) {
      const output = join(bed.directory, name);
      await pack(last, '--to', form, '--output', output);
      assert.equal((await mustRun(stasisProgram, ['verify', output])).exitCode, 0);
      last = output;
    }
    const images = join(bed.directory, 'images');
    await mustRun(stasisProgram, ['unpack', last, '--images', '--output', images]);
    const packed = join(bed.directory, 'packed.tar');
    const words = ['pack', images, '--from', 'criu', '--to', 'cri-o', '--output', packed];
    const without = await run(stasisProgram, words);
    assert.equal(without.exitCode, 3);
    assert.match(lastLine(without.stderr), /name the container's config.json with --spec/);
    await mustRun(stasisProgram, [...words, '--spec', join(container.bundle, 'config.json'), '--name', 'again']);
    assert.deepEqual(leftovers(), []);
    const other = await restoreElsewhere(packed);
    await assertGoesOn(container, other);
  });

  it('grant nothing: the bundle of the restoring side is the only authority', async () => {
    const container = await start();
    const file = join(bed.directory, 'a.tar');
    await container.must(['checkpoint', '--archive', file, '--ignore-rootfs', 'c1']);
    const other = await bed.prepare({
      id: 'c2',
      args: counter,
      adjust: (spec) => {
        for (const set of Object.values(spec.process.capabilities!)) set.splice(0, set.length);
      },
    });
    const result = await other.runDetached(['restore', '--detach', '--bundle', other.bundle, '--archive', file, 'c2']);
    assert.equal(result.exitCode, 1);
    assert.match(result.stderr, /POLICY_WIDENED/);
  });
});
