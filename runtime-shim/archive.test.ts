// Archives: what is written is read again, and what is hostile is refused, with
// nothing written and nothing touched outside.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { nativeBinding } from '../nativecore/index.js';
import { accessListProblem, kAccessList, listOfMode } from '../oci-spec/access-control-list.js';
import { StasisError, type Degradation } from './errors/index.js';
import { applyRootfs, type RootfsCalls, type RootfsUpdate } from './archive/apply-rootfs.js';
import { compressionOfName } from './archive/compression.js';
import { foreign, hostileArchives, hostileRootfs, ours, rawTar } from './archive/hostile-archives.js';
import { PrivateDirectory, privateName } from './archive/private-directory.js';
import { readArchive } from './archive/read-archive.js';
import { convertRootfsTar } from './archive/rootfs-tar.js';
import { openArchive, readTar, type DeviceNumber, type Member } from './archive/tar-reader.js';
import { TarWriter } from './archive/tar-writer.js';
import { unpackCheckpoint } from './convert/unpack-checkpoint.js';
import { writeTar } from './convert/write-output.js';

describe('archives', () => {
  let directory: string;
  beforeEach(() => (directory = mkdtempSync(join(tmpdir(), 'stasis-archive-'))));
  afterEach(() => rmSync(directory, { recursive: true, force: true }));

  for (const name of ['a.tar', 'a.tar.gz', 'a.tar.zst', 'a.tgz']) {
    it(`are read as they were written: ${name}`, async () => {
      const path = join(directory, name);
      const large = Buffer.alloc(5 << 20, 'pages ');
      writeFileSync(join(directory, 'pages'), large);
      await writeTar(path, compressionOfName(name), async (tar) => {
        await tar.addDirectory({ name: 'checkpoint' });
        await tar.addFile({ name: 'checkpoint/pages-1.img' }, join(directory, 'pages'));
        await tar.addBytes({ name: 'checkpoint/inventory.img' }, Buffer.from('inventory'));
        await tar.addBytes({ name: 'checkpoint/empty.img' }, new Uint8Array());
      });
      const destination = join(directory, 'out');
      mkdirSync(destination);
      const contents = await readArchive(path, { destination });
      assert.deepEqual([...contents.files.keys()].sort(), [
        'checkpoint/empty.img',
        'checkpoint/inventory.img',
        'checkpoint/pages-1.img',
      ]);
      assert.ok(readFileSync(join(destination, 'checkpoint/pages-1.img')).equals(large));
      assert.equal(lstatSync(join(destination, 'checkpoint/pages-1.img')).mode & 0o777, 0o600);
      assert.deepEqual(readdirSync(directory).sort(), [name, 'out', 'pages'].sort(), 'a temporary file is left');
    });
  }

  it('are read with every digest compared when they are ours, and without when they are not', async () => {
    const path = join(directory, 'a.tar');
    writeFileSync(path, rawTar(ours(foreign())));
    assert.equal((await readArchive(path)).verified, true);
    writeFileSync(path, rawTar(foreign()));
    assert.equal((await readArchive(path)).verified, false);
  });

  it('are read when their compressed data has several frames, as parallel compressors make them', async () => {
    const path = join(directory, 'a');
    const content = randomBytes(3 << 20);
    const bytes = rawTar(foreign({ name: 'checkpoint/pages-1.img', content }));
    const pieces = Array.from({ length: 8 }, (_, at) =>
      bytes.subarray((at * bytes.length) >> 3, ((at + 1) * bytes.length) >> 3),
    );
    const skippable = Buffer.from('502a4d1804000000aabbccdd', 'hex');
    for (const archive of [
      Buffer.concat([skippable, ...pieces.map((piece) => zstdCompressSync(piece)), skippable]),
      Buffer.concat(pieces.map((piece) => gzipSync(piece))),
    ]) {
      writeFileSync(path, archive);
      const found = (await readArchive(path)).files.get('checkpoint/pages-1.img');
      assert.equal(found?.sha256, createHash('sha256').update(content).digest('hex'));
    }
  });

  it('do not wait for a named pipe, and are not written under a name that says otherwise', async () => {
    const pipe = join(directory, 'pipe');
    execFileSync('mkfifo', [pipe]);
    await refused(readArchive(pipe), /is not a plain file/);
    assert.throws(() => compressionOfName('a.tar.xz'), /only .tar, .tar.zst and .tar.gz are written/);
    assert.equal(compressionOfName('a.tar.zst'), 'zstd');
  });

  it('do not appear under their name before they are complete', async () => {
    const path = join(directory, 'a.tar');
    const writing = writeTar(path, 'none', async (tar) => {
      await tar.addBytes({ name: 'one' }, Buffer.from('1'));
      assert.equal(existsSync(path), false);
      throw new Error('the target resisted');
    });
    await assert.rejects(writing, /the target resisted/);
    assert.deepEqual(readdirSync(directory), []);
  });

  it('fail with the name of the file when the disk is full', async () => {
    const { createWriteStream } = await import('node:fs');
    const tar = new TarWriter(createWriteStream('/dev/full'), 'none');
    await assert.rejects(async () => {
      for (let at = 0; at < 50; at += 1) await tar.addBytes({ name: `m${at}` }, Buffer.alloc(1 << 20));
      await tar.finish();
    }, /ENOSPC/);
  });

  it('are cleared away when whoever wrote them was killed', () => {
    // A process id that nobody has.
    const abandoned = join(directory, privateName('restore').replace(`-${process.pid}-`, '-4194999-'));
    const mine = privateName('restore');
    // Of a host or a pid namespace where that process may well run.
    const foreign = '.stasis-4194999-00112233-00112233.restore';
    const old = join(directory, '.stasis-4194999-00112233-44556677.restore');
    for (const path of [abandoned, join(directory, mine), join(directory, foreign), old]) mkdirSync(path);
    const twoDaysAgo = Date.now() / 1000 - 2 * 24 * 60 * 60;
    utimesSync(old, twoDaysAgo, twoDaysAgo);
    {
      using made = new PrivateDirectory(directory, 'restore');
      assert.equal(lstatSync(made.path).mode & 0o777, 0o700);
      assert.equal(existsSync(abandoned), false);
      assert.equal(existsSync(old), false);
      assert.equal(existsSync(join(directory, mine)), true);
    }
    assert.deepEqual(readdirSync(directory).sort(), [foreign, mine].sort());
  });

  describe('of strangers are refused, and nothing outside is touched:', () => {
    const corpus = hostileArchives();
    it('there are at least 40 of them', () => assert.ok(corpus.length + hostileRootfs().length >= 40));

    for (const { what, bytes, says, maxBytes } of corpus) {
      it(what, async () => {
        const inside = join(directory, 'inside');
        mkdirSync(inside);
        writeFileSync(join(inside, 'canary'), 'alive');
        const path = join(directory, 'hostile.tar');
        writeFileSync(path, bytes);
        const before = picture(directory);
        await refused(
          unpackCheckpoint({
            source: path,
            output: join(inside, 'out'),
            imagesOnly: false,
            tag: undefined,
            maxBytes,
            onBytes: () => undefined,
          }),
          says,
        );
        assert.deepEqual(picture(directory), before);
      });
    }
  });

  describe('with changes of a root file system are refused before the first is made:', () => {
    for (const { what, bytes, says } of hostileRootfs()) {
      it(what, async () => {
        const root = makeTree(directory);
        const tarFile = join(directory, 'rootfs-diff.tar');
        writeFileSync(tarFile, bytes);
        const before = picture(directory);
        await refused(apply(root, { tarFile, deleted: [] }), says);
        assert.deepEqual(picture(directory), before);
      });
    }

    for (const path of ['/out/secret', '/dirlink/kept']) {
      it(`a deleted file behind a link: ${path}`, async () => {
        const root = makeTree(directory);
        const before = picture(directory);
        await refused(
          apply(root, { tarFile: undefined, deleted: [path] }),
          /lies below "(out|dirlink)", and that is not a directory/,
        );
        assert.deepEqual(picture(directory), before);
      });
    }

    it('a deleted file behind a link that the archive brings', async () => {
      const root = makeTree(directory);
      const tarFile = join(directory, 'rootfs-diff.tar');
      writeFileSync(
        tarFile,
        rawTar([
          { name: 'first', content: 'x' },
          { name: 'l', type: '2', link: '/tmp' },
        ]),
      );
      const before = picture(directory);
      await refused(apply(root, { tarFile, deleted: ['/l/evil'] }), /lies below "l", and that is not a directory/);
      assert.deepEqual(picture(directory), before);
    });

    it('a deleted link, which goes, and what it leads to stays', async () => {
      const root = makeTree(directory);
      await apply(root, { tarFile: undefined, deleted: ['/out', '/not/there'] });
      assert.equal(existsSync(join(root, 'out')), false);
      assert.equal(readFileSync(join(directory, 'outside/secret'), 'utf8'), 'secret');
    });
  });

  it('put the changed files of a root file system in their place', async () => {
    const root = makeTree(directory);
    const tarFile = join(directory, 'rootfs-diff.tar');
    writeFileSync(
      tarFile,
      rawTar([
        { name: 'new/', type: '5', mode: 0o750 },
        { name: 'new/file', content: 'new', mode: 0o4755 },
        { name: 'new/same', type: '1', link: 'new/file' },
        { name: 'new/link', type: '2', link: '/anywhere' },
        { name: 'out', content: 'a file where a link was' },
        { name: 'dir', content: 'a file where a directory was' },
        { name: 'made/on/the/way', content: 'x' },
      ]),
    );
    await apply(root, { tarFile, deleted: ['/f'] });
    assert.equal(lstatSync(join(root, 'new')).mode & 0o7777, 0o750);
    assert.equal(lstatSync(join(root, 'new/file')).mode & 0o7777, 0o4755);
    assert.equal(lstatSync(join(root, 'new/file')).ino, lstatSync(join(root, 'new/same')).ino);
    assert.equal(readlinkSync(join(root, 'new/link')), '/anywhere');
    assert.equal(readFileSync(join(root, 'out'), 'utf8'), 'a file where a link was');
    assert.equal(readFileSync(join(root, 'dir'), 'utf8'), 'a file where a directory was');
    assert.equal(existsSync(join(root, 'f')), false);
    assert.equal(readFileSync(join(directory, 'outside/secret'), 'utf8'), 'secret');
  });

  it('understand the whiteouts of image layers', async () => {
    const root = makeTree(directory);
    mkdirSync(join(root, 'opaque'));
    writeFileSync(join(root, 'opaque/old'), 'old');
    const tarFile = join(directory, 'rootfs-diff.tar');
    writeFileSync(
      tarFile,
      rawTar([{ name: '.wh.f' }, { name: 'opaque/.wh..wh..opq' }, { name: 'opaque/new', content: 'new' }]),
    );
    await apply(root, { tarFile, deleted: [] });
    assert.equal(existsSync(join(root, 'f')), false);
    assert.deepEqual(readdirSync(join(root, 'opaque')), ['new']);
  });

  it('take whiteouts for what was there before, wherever they stand, and device 0:0 for one', async () => {
    const root = makeTree(directory);
    mkdirSync(join(root, 'opaque'));
    writeFileSync(join(root, 'opaque/old'), 'old');
    const tarFile = join(directory, 'rootfs-diff.tar');
    writeFileSync(
      tarFile,
      rawTar([
        { name: 'opaque/deep/new', content: 'new' },
        { name: 'opaque/.wh..wh..opq' },
        { name: 'dir/kept', content: 'new' },
        { name: 'dir/.wh.kept' },
        { name: 'f', type: '3', device: [0, 0] },
      ]),
    );
    assert.deepEqual(await apply(root, { tarFile, deleted: [] }), []);
    assert.deepEqual(readdirSync(join(root, 'opaque')), ['deep']);
    assert.equal(readFileSync(join(root, 'dir/kept'), 'utf8'), 'new');
    assert.equal(existsSync(join(root, 'f')), false);
  });

  it('carry named pipes, devices, links, large owners and attributes that are not UTF-8 through every form', async () => {
    const first = join(directory, 'first.tar');
    const value = Buffer.from('0100000200ff8000000000000a3d0000000000', 'hex');
    const attributes = new Map([
      ['security.capability', value],
      ['user.empty', Buffer.alloc(0)],
      ['user.large', randomBytes(20_000)],
    ]);
    const long = `${'long/'.repeat(40)}name`;
    await writeTar(first, 'none', async (tar) => {
      await tar.addDirectory({ name: 'd', mode: 0o750, attributes });
      await tar.addBytes({ name: long, uid: 1_000_000, gid: 4_000_000, attributes }, Buffer.from('content'));
      await tar.addBytes({ name: 'd/plain' }, Buffer.from('plain'));
      await tar.addLink({ name: 'd/link', type: 'link', target: long, uid: 1_000_000 });
      await tar.addNode({ name: 'd/pipe', type: 'fifo', major: 0, minor: 0, mode: 0o622 });
      await tar.addNode({ name: 'd/disk', type: 'b', major: 8, minor: 255 });
    });
    const read = async (file: string): Promise<Map<string, Member>> => {
      const members = new Map<string, Member>();
      await readTar(await openArchive(file), { totalBytes: 1 << 20, members: 100 }, async (one, content) => {
        members.set(one.name, one);
        for await (const _ of content);
      });
      return members;
    };
    const second = join(directory, 'second.tar.gz');
    await convertRootfsTar(first, ['/gone'], second, { whiteouts: 'inside', compression: 'gzip' });
    const third = join(directory, 'third.tar');
    const back = await convertRootfsTar(second, [], third, { whiteouts: 'beside', compression: 'none' });
    assert.deepEqual([back.deleted, back.lost], [['/gone'], []]);
    for (const file of [first, third]) {
      const members = await read(file);
      const [one, link] = [members.get(long)!, members.get('d/link')!];
      assert.deepEqual([one.uid, one.gid, one.sizeBytes], [1_000_000, 4_000_000, 7]);
      for (const [name, expected] of attributes) assert.ok(one.attributes.get(name)?.equals(expected), name);
      assert.equal(members.get('d/')?.attributes.size, 3);
      assert.deepEqual([link.kind, link.linkTarget, link.uid], ['link', long, 1_000_000]);
      assert.equal(members.get('d/plain')?.attributes.size, 0);
      assert.equal(members.get('d/pipe')?.kind, 'fifo');
      assert.deepEqual(members.get('d/disk')?.device, { type: 'b', major: 8, minor: 255 });
    }
    // What others make of it.
    const listed = execFileSync('tar', ['-tvf', third, '--xattrs'], { encoding: 'utf8' });
    assert.match(listed, /1000000\/4000000.* long\/.*name\n/);
    assert.match(listed, /^prw--w--w-.*d\/pipe$/m);
  });

  it('judge access control lists as the kernel does', () => {
    const file = join(directory, 'file');
    writeFileSync(file, '');
    const kinds = [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40];
    const entry = (kind: number, permissions: number): Buffer => {
      const bytes = Buffer.alloc(8);
      bytes.writeUInt16LE(kind, 0);
      bytes.writeUInt16LE(permissions, 2);
      bytes.writeUInt32LE(kind === 0x02 || kind === 0x08 ? 1000 : 0xffff_ffff, 4);
      return bytes;
    };
    // Every subset of the kinds, in order; then each with its first two changed over, and with one of them twice.
    const lists = Array.from({ length: 1 << kinds.length }, (_, set) => kinds.filter((_kind, bit) => (set >> bit) & 1));
    const orders = lists.flatMap((list) => [
      list,
      [...list.slice(0, 2).reverse(), ...list.slice(2)],
      [...list, ...list.slice(-1)],
      [...list.slice(0, 2), ...list.slice(1)],
    ]);
    const values = orders.map((list) => Buffer.concat([Buffer.of(2, 0, 0, 0), ...list.map((kind) => entry(kind, 4))]));
    const sound = Buffer.concat([Buffer.of(2, 0, 0, 0), entry(1, 6), entry(4, 4), entry(0x20, 0)]);
    values.push(sound, sound.subarray(0, -1), sound.subarray(0, 3), Buffer.alloc(0), Buffer.of(1, 0, 0, 0));
    values.push(Buffer.concat([sound.subarray(0, 4), entry(1, 8), entry(4, 4), entry(0x20, 0)]));
    let taken = 0;
    for (const value of values) {
      let takes: boolean;
      try {
        takes = nativeBinding().setAttribute(file, kAccessList, value);
        taken += 1;
      } catch {
        takes = false;
      }
      const ours = accessListProblem(value);
      // An empty value says nothing: the kernel lets it pass, and no file has one.
      if (value.length > 0) assert.equal(ours === undefined, takes, `${value.toString('hex')}: ${ours}`);
    }
    assert.ok(taken > 10 && taken < values.length / 2, `${taken} of ${values.length} were taken`);
    assert.equal(nativeBinding().setAttribute(file, kAccessList, listOfMode(0o640)), true);
    assert.equal(nativeBinding().getAttribute(file, kAccessList), undefined);
    assert.equal(lstatSync(file).mode & 0o777, 0o640);
  });

  it('make of devices what the spec allows, and of attributes what grants nothing', async () => {
    const root = makeTree(directory);
    const tarFile = join(directory, 'rootfs-diff.tar');
    writeFileSync(
      tarFile,
      rawTar([
        { name: 'mem', type: '3', device: [1, 1] },
        { name: 'null', type: '3', device: [1, 3] },
        {
          name: 'a',
          content: 'a',
          pax: {
            'SCHILY.xattr.user.note': 'n',
            'SCHILY.xattr.trusted.overlay.redirect': '/etc',
            'SCHILY.xattr.security.selinux': 'unconfined_t',
            'SCHILY.xattr.trusted.secret': 's',
          },
        },
        { name: 'b', content: 'b', pax: { 'SCHILY.xattr.trusted.secret': 's' } },
      ]),
    );
    const made: string[] = [];
    const degradations = await apply(
      root,
      { tarFile, deleted: [] },
      {
        makeNode: (_path, kind, major, minor) => made.push(`${kind} ${major}:${minor}`) === 0,
        setAttribute: (path, name) => made.push(`${name} ${readFileSync(path, 'utf8')}`) > 0,
      },
    );
    assert.deepEqual(made, ['c 1:3', 'user.note a']);
    assert.deepEqual(
      degradations.map(({ message }) => message),
      [
        '"/mem", the character device 1:1, is not made: the spec does not allow it, and a restore never grants more than the spec',
        '"/null" is not made: EPERM (operation not permitted), as devices are in a user namespace',
        '"/a" (and 1 more) is put back without the extended attribute "trusted.secret"',
      ],
    );
    assert.equal(existsSync(join(root, 'mem')), false);
  });
});

/** By a spec that allows 1:3 alone. */
function apply(
  root: string,
  update: Pick<RootfsUpdate, 'tarFile' | 'deleted'>,
  calls: RootfsCalls = nativeBinding(),
): Promise<Degradation[]> {
  const allowsDevice = (device: DeviceNumber): boolean => device.major === 1 && device.minor === 3;
  return applyRootfs(root, { ...update, allowsDevice, calls });
}

async function refused(work: Promise<unknown>, says: RegExp): Promise<void> {
  await assert.rejects(work, (error: unknown) => {
    assert.ok(error instanceof StasisError, String((error as Error).stack));
    assert.match(error.message, says);
    assert.ok(['ARCHIVE_CORRUPT', 'IMAGE_MISMATCH', 'ARCHIVE_UNSUPPORTED'].includes(error.code), error.code);
    // eslint-disable-next-line no-control-regex
    assert.doesNotMatch(error.message, /[\u0000-\u001f]/);
    return true;
  });
}

function makeTree(directory: string): string {
  const root = join(directory, 'root');
  mkdirSync(join(directory, 'outside'));
  writeFileSync(join(directory, 'outside/secret'), 'secret');
  mkdirSync(join(root, 'dir'), { recursive: true });
  writeFileSync(join(root, 'dir/kept'), 'kept');
  writeFileSync(join(root, 'f'), 'file');
  symlinkSync(join(directory, 'outside'), join(root, 'out'));
  symlinkSync('dir', join(root, 'dirlink'));
  return root;
}

/** Everything below, with what tells a changed file. */
function picture(directory: string, prefix = ''): string[] {
  return readdirSync(directory)
    .sort()
    .flatMap((name) => {
      const path = join(directory, name);
      const stat = lstatSync(path);
      const facts = `${prefix}${name} ${stat.mode} ${stat.ino} ${stat.isFile() ? `${stat.size} ${stat.mtimeMs}` : ''}`;
      return [facts, ...(stat.isDirectory() ? picture(path, `${prefix}${name}/`) : [])];
    });
}
