import assert from 'node:assert/strict';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { FileDigest } from './archive/file-digest.js';
import { privateName } from './archive/private-directory.js';
import { formatManifest, kManifestName, manifestEntry, parseManifest } from './archive/manifest.js';
import { ImageInput } from './image-input.js';
import { ImageOutput } from './image-output.js';

const inventory = { name: 'inventory.img', bytes: Buffer.from('inventory') };

describe('images in a directory', () => {
  let directory: string;
  beforeEach(() => {
    directory = join(mkdtempSync(join(tmpdir(), 'stasis-test-')), 'images');
  });
  afterEach(() => rmSync(join(directory, '..'), { recursive: true, force: true }));

  async function writeCheckpoint(pages: string): Promise<void> {
    using output = new ImageOutput(directory, true);
    output.write({ name: 'core-1.img', bytes: Buffer.from('core') });
    writeFileSync(
      join(
        directory,
        readdirSync(directory).find((name) => name.startsWith('.stasis-'))!,
        'pages-1.img',
      ),
      pages,
    );
    const digest = new FileDigest({ sha256: false, pages: true });
    digest.update(Buffer.from(pages));
    const { sizeBytes, pageDigest } = digest.entry();
    output.addPageFiles([{ name: 'pages-1.img', sizeBytes: BigInt(sizeBytes), digest: pageDigest!, direct: false }]);
    await output.commit(inventory);
  }

  it('are secret, flat and complete after commit', async () => {
    await writeCheckpoint('pages');
    assert.equal(statSync(directory).mode & 0o777, 0o700);
    assert.deepEqual(readdirSync(directory).sort(), [
      'core-1.img',
      'inventory.img',
      'pages-1.img',
      'stasis-manifest.json',
    ]);
    assert.equal(statSync(join(directory, 'core-1.img')).mode & 0o777, 0o600);
    using input = new ImageInput(directory);
    assert.equal(Buffer.from(input.read('core-1.img')!).toString(), 'core');
    await input.verifyRest();
  });

  it('leave an older checkpoint whole until they are complete', async () => {
    await writeCheckpoint('old');
    {
      using output = new ImageOutput(directory, false);
      output.write({ name: 'core-1.img', bytes: Buffer.from('half') });
    }
    assert.equal(readFileSync(join(directory, 'core-1.img'), 'utf8'), 'core');
    using input = new ImageInput(directory);
    await input.verifyRest();
  });

  it('leave an older checkpoint whole when their commit fails', async () => {
    await writeCheckpoint('old');
    {
      using output = new ImageOutput(directory, true);
      output.write({ name: 'core-1.img', bytes: Buffer.from('half') });
      const staging = readdirSync(directory).find((name) => name.startsWith('.stasis-'))!;
      // In the way of the manifest: the commit fails before it has moved anything.
      writeFileSync(join(directory, staging, 'stasis-manifest.json'), '');
      await assert.rejects(output.commit(inventory), /cannot complete the checkpoint/);
    }
    assert.equal(readFileSync(join(directory, 'core-1.img'), 'utf8'), 'core');
    using input = new ImageInput(directory);
    await input.verifyRest();
  });

  it('clear away what a killed process left, and nothing that a running one is writing', () => {
    const abandoned = privateName('images').replace(`-${process.pid}-`, '-4194999-'); // a process id that nobody has
    const archive = privateName('web.tar');
    mkdirSync(join(directory, abandoned), { recursive: true });
    writeFileSync(join(directory, archive), '');
    {
      using output = new ImageOutput(directory, true);
      assert.equal(output.committed, false);
    }
    assert.deepEqual(readdirSync(directory), [archive]);
  });

  it('replace an older checkpoint without leaving any of its files', async () => {
    await writeCheckpoint('old');
    writeFileSync(join(directory, 'core-99.img'), 'of another tree');
    await writeCheckpoint('new');
    assert.equal(existsSync(join(directory, 'core-99.img')), false);
    assert.equal(readFileSync(join(directory, 'pages-1.img'), 'utf8'), 'new');
  });

  it('are recognised when truncated, altered or incomplete', async () => {
    await writeCheckpoint('pages');
    writeFileSync(join(directory, 'core-1.img'), 'cork');
    {
      using input = new ImageInput(directory);
      assert.throws(() => input.read('core-1.img'), /its digest differs/);
      await assert.rejects(
        input.verifyRest(),
        /"core-1.img" is not the file that was written/,
        'although nobody read it',
      );
    }
    await writeCheckpoint('pages');
    writeFileSync(join(directory, 'pages-1.img'), 'pageZ');
    {
      using input = new ImageInput(directory);
      await assert.rejects(input.verifyRest(), /"pages-1.img" is not the file that was written/);
    }
    truncateSync(join(directory, 'pages-1.img'), 2);
    assert.throws(() => new ImageInput(directory), /"pages-1.img" has 2 bytes, the manifest says 5/);
    rmSync(join(directory, 'pages-1.img'));
    assert.throws(() => new ImageInput(directory), /"pages-1.img" is missing/);
    rmSync(join(directory, 'inventory.img'));
    assert.throws(() => new ImageInput(directory), /"inventory.img" is missing, which is written last/);
  });

  it('are recognised when their manifest has sha256 digests of page files, too', async () => {
    await writeCheckpoint('pages');
    const manifest = join(directory, kManifestName);
    const { files } = parseManifest(readFileSync(manifest, 'utf8'));
    const older = new Map([...files, ['pages-1.img', manifestEntry(Buffer.from('pages'))] as const]);
    writeFileSync(manifest, formatManifest({ files: older }));
    assert.match(readFileSync(manifest, 'utf8'), /"version": 1,/);
    {
      using input = new ImageInput(directory);
      await input.verifyRest();
    }
    writeFileSync(join(directory, 'pages-1.img'), 'pageZ');
    using input = new ImageInput(directory);
    await assert.rejects(input.verifyRest(), /"pages-1.img" is not the file that was written/);
  });

  it('have page digests that do not depend on how a file was read', () => {
    const bytes = Buffer.alloc(5 * 4096 + 100, 'some pages');
    const digests = [1, 100, 4095, 4096, 10_000, bytes.length].map((pieceBytes) => {
      const digest = new FileDigest({ sha256: false, pages: true });
      for (let at = 0; at < bytes.length; at += pieceBytes) digest.update(bytes.subarray(at, at + pieceBytes));
      return digest.entry().pageDigest;
    });
    assert.equal(new Set(digests).size, 1);
    const short = new FileDigest({ sha256: false, pages: true });
    short.update(Buffer.from('abc'));
    assert.equal(short.entry().pageDigest, '06b05ab6733a618578af5f94892f3950', "XXH3's own, as in the core's test");
  });

  it('are never read through links out of the directory', async () => {
    await writeCheckpoint('pages');
    using input = new ImageInput(directory);
    assert.equal(input.read('../images/core-1.img'), undefined);
    assert.equal(input.read('..'), undefined);
  });
});
