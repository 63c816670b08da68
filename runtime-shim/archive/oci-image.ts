// A checkpoint as an OCI image: a layout directory with one layer, which holds the
// archive's members at its top. What is read is compared with its digest.
//
//   oci-layout    index.json ──▶ manifest (annotations) ──▶ config
//                                    └──────────────────────▶ layer: checkpoint/, config.dump, ...
//   blobs/sha256/<digest of each>
import { createHash } from 'node:crypto';
import {
  closeSync,
  constants,
  createReadStream,
  createWriteStream,
  fstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { imageMarks } from '../../oci-spec/checkpoint-archive.js';
import { FormatError, JsonReader, parseJson } from '../../oci-spec/json.js';
import { StasisError, errnoCode, fileError } from '../errors/index.js';
import { Meter, type Compression } from './compression.js';
import { corrupt } from './tar-reader.js';
import { TarWriter } from './tar-writer.js';

const kManifestType = 'application/vnd.oci.image.manifest.v1+json';
const kConfigType = 'application/vnd.oci.image.config.v1+json';
const layerTypes: Readonly<Record<Compression, string>> = {
  none: 'application/vnd.oci.image.layer.v1.tar',
  gzip: 'application/vnd.oci.image.layer.v1.tar+gzip',
  zstd: 'application/vnd.oci.image.layer.v1.tar+zstd',
};
const kMaxDocumentBytes = 4 << 20;

export interface NewImage {
  readonly annotations: Readonly<Record<string, string>>;
  /** How the image is called in the layout; "" if it needs no name. */
  readonly tag: string;
  readonly architecture: string;
  readonly created: string;
  readonly compression: Compression;
  /** Adds the members. */
  fill(tar: TarWriter): Promise<void>;
}

/** Precondition: `layout` is an existing, empty directory. */
export async function writeOciLayout(layout: string, image: NewImage): Promise<void> {
  const blobs = join(layout, 'blobs', 'sha256');
  mkdirSync(blobs, { recursive: true, mode: 0o755 });
  const uncompressed = createHash('sha256');
  const compressed = createHash('sha256');
  const temporary = join(blobs, '.layer');
  const meter = new Meter((chunk) => compressed.update(chunk));
  const writing = pipeline(meter, createWriteStream(temporary, { flags: 'wx', mode: 0o600 }));
  const tar = new TarWriter(meter, image.compression, (chunk) => uncompressed.update(chunk));
  try {
    await image.fill(tar);
    await tar.finish();
    await writing;
  } catch (error) {
    tar.abort();
    await writing.catch(() => undefined);
    throw error;
  }
  const layerDigest = compressed.digest('hex');
  renameSync(temporary, join(blobs, layerDigest));
  const put = (document: unknown): { readonly digest: string; readonly size: number } => {
    const bytes = Buffer.from(JSON.stringify(document));
    const digest = createHash('sha256').update(bytes).digest('hex');
    writeFileSync(join(blobs, digest), bytes, { mode: 0o600 });
    return { digest: `sha256:${digest}`, size: bytes.length };
  };
  const config = put({
    created: image.created,
    architecture: image.architecture,
    os: 'linux',
    config: { WorkingDir: '/' },
    rootfs: { type: 'layers', diff_ids: [`sha256:${uncompressed.digest('hex')}`] },
    history: [{ created: image.created, created_by: 'stasis pack' }],
  });
  const manifest = put({
    schemaVersion: 2,
    mediaType: kManifestType,
    config: { mediaType: kConfigType, ...config },
    layers: [{ mediaType: layerTypes[image.compression], digest: `sha256:${layerDigest}`, size: meter.bytes }],
    annotations: image.annotations,
  });
  const index = {
    schemaVersion: 2,
    manifests: [
      {
        mediaType: kManifestType,
        ...manifest,
        platform: { architecture: image.architecture, os: 'linux' },
        ...(image.tag === '' ? {} : { annotations: { 'org.opencontainers.image.ref.name': image.tag } }),
      },
    ],
  };
  writeFileSync(join(layout, 'oci-layout'), JSON.stringify({ imageLayoutVersion: '1.0.0' }), { mode: 0o600 });
  writeFileSync(join(layout, 'index.json'), JSON.stringify(index), { mode: 0o600 });
}

export interface FoundImage {
  readonly annotations: Readonly<Record<string, string>>;
  /** Of the one layer, whose digest has been compared. */
  readonly layerFile: string;
}

/** Throws ARCHIVE_CORRUPT. `tag` undefined: there must be one image only. */
export async function readOciLayout(layout: string, tag: string | undefined): Promise<FoundImage> {
  const index = document(layout, join(layout, 'index.json'), undefined);
  const manifests = read(layout, 'index.json', () =>
    index.field('manifests').listOr((one) => ({
      digest: one.field('digest').string(),
      type: one.field('mediaType').stringOr(kManifestType),
      name: one.field('annotations').stringMap()['org.opencontainers.image.ref.name'],
    })),
  );
  const wanted = tag === undefined ? manifests : manifests.filter(({ name }) => name === tag);
  const [first, ...others] = wanted;
  if (first === undefined || others.length > 0) {
    const names = manifests.map(({ name }) => name ?? '(no name)').join(', ');
    throw new StasisError({
      code: 'ARCHIVE_UNSUPPORTED',
      message: `cannot choose an image in ${layout}: it has ${names === '' ? 'none' : names}`,
      subject: { path: layout },
      hint: 'name one with --tag',
    });
  }
  const manifest = document(layout, blobPath(layout, first.digest), first.digest);
  const { annotations, layers } = read(layout, 'the manifest', () => ({
    annotations: manifest.field('annotations').stringMap(),
    layers: manifest.field('layers').listOr((layer) => layer.field('digest').string()),
  }));
  if (!Object.values(imageMarks).some((mark) => annotations[mark] !== undefined)) {
    throw new StasisError({
      code: 'ARCHIVE_UNSUPPORTED',
      message: `cannot use the image in ${layout}: it is no checkpoint, none of the annotations ${Object.values(imageMarks).join(', ')} is there`,
      subject: { path: layout },
    });
  }
  const [layer, ...more] = layers;
  if (layer === undefined || more.length > 0)
    throw corrupt(layout, `the image has ${layers.length} layers, a checkpoint has one`);
  const layerFile = blobPath(layout, layer);
  await compareDigest(layout, layerFile, layer);
  return { annotations, layerFile };
}

function read<T>(layout: string, what: string, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    if (error instanceof FormatError) throw corrupt(layout, `${what}: ${error.message}`);
    throw error;
  }
}

/** Only digests lead to files: a name with "/" or ".." is none. */
function blobPath(layout: string, digest: string): string {
  if (!/^sha256:[0-9a-f]{64}$/.test(digest))
    throw corrupt(layout, `${JSON.stringify(digest.slice(0, 100))} is no sha256 digest`);
  return join(layout, 'blobs', 'sha256', digest.slice('sha256:'.length));
}

function document(layout: string, path: string, digest: string | undefined): JsonReader {
  const fd = openPlain(layout, path);
  try {
    const { size } = fstatSync(fd);
    if (size > kMaxDocumentBytes)
      throw corrupt(layout, `${path} has ${size} bytes, more than any may have (${kMaxDocumentBytes})`);
    const bytes = readFileSync(fd);
    if (digest !== undefined && createHash('sha256').update(bytes).digest('hex') !== digest.slice('sha256:'.length))
      throw mismatch(layout, digest);
    return read(layout, path, () => new JsonReader(parseJson(bytes.toString('utf8'))));
  } finally {
    closeSync(fd);
  }
}

async function compareDigest(layout: string, path: string, digest: string): Promise<void> {
  const hash = createHash('sha256');
  const fd = openPlain(layout, path);
  for await (const chunk of createReadStream('', { fd, highWaterMark: 1 << 20 })) hash.update(chunk as Buffer);
  if (hash.digest('hex') !== digest.slice('sha256:'.length)) throw mismatch(layout, digest);
}

function openPlain(layout: string, path: string): number {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    if (errnoCode(error) === 'ENOENT') throw corrupt(layout, `${path} is missing`);
    throw fileError(`cannot read the image ${layout}`, path, error);
  }
  if (fstatSync(fd).isFile()) return fd;
  closeSync(fd);
  throw corrupt(layout, `${path} is not a plain file`);
}

function mismatch(layout: string, digest: string): StasisError {
  return new StasisError({
    code: 'IMAGE_MISMATCH',
    message: `cannot read the image ${layout}: the content of ${digest} is not what its digest says`,
    subject: { path: layout },
    hint: 'use another copy of the image',
  });
}
