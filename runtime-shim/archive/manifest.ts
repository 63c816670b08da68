// stasis-manifest.json: the size and sha256 of every file of a checkpoint,
// written before the inventory. It is what tells a whole checkpoint from a
// truncated, altered or mixed-up one; images of other engines have none.
import { createHash } from 'node:crypto';
import { FormatError, JsonReader, parseJson } from '../../oci-spec/json.js';

export const kManifestName = 'stasis-manifest.json';
const kVersion = 1;

export interface ManifestEntry {
  readonly sizeBytes: number;
  /** Hexadecimal. */
  readonly sha256: string;
}

export interface Manifest {
  readonly files: ReadonlyMap<string, ManifestEntry>;
  /**
   * Digest of the manifest of the checkpoint that pages are left to. Who does not know that checkpoint cannot
   * name it: a link in images from a stranger reaches nobody's memory.
   */
  readonly parentDigest?: string;
}

export function formatManifest(manifest: Manifest): Uint8Array {
  const files = [...manifest.files].sort(([one], [other]) => (one < other ? -1 : 1));
  const document = {
    version: kVersion,
    ...(manifest.parentDigest === undefined ? {} : { parent: manifest.parentDigest }),
    files: Object.fromEntries(files.map(([name, entry]) => [name, { size: entry.sizeBytes, sha256: entry.sha256 }])),
  };
  return Buffer.from(`${JSON.stringify(document, undefined, 1)}\n`);
}

/** Throws FormatError. */
export function parseManifest(text: string): Manifest {
  const manifest = parseEntries(text);
  for (const name of manifest.files.keys()) {
    if (name === '' || name.includes('/') || name === '.' || name === '..')
      throw new FormatError('files', `has an impossible name: ${JSON.stringify(name)}`);
  }
  return manifest;
}

/** stasis-archive.json has the same form; its names are those of an archive's members. Throws FormatError. */
export function parseArchiveManifest(text: string): Manifest {
  return parseEntries(text);
}

function parseEntries(text: string): Manifest {
  const document = new JsonReader(parseJson(text));
  const version = document.field('version').integer();
  if (version !== kVersion) throw new FormatError('version', `is ${version}, this program reads ${kVersion}`);
  const files = document.field('files').map((entry) => {
    const sha256 = entry.field('sha256').string();
    if (!/^[0-9a-f]{64}$/.test(sha256)) throw new FormatError(entry.path, 'has no sha256 digest');
    return { sizeBytes: entry.field('size').integer(), sha256 };
  });
  const parentDigest = document.field('parent').stringOr(undefined);
  if (parentDigest !== undefined && !/^sha256:[0-9a-f]{64}$/.test(parentDigest))
    throw new FormatError('parent', 'is no digest');
  return parentDigest === undefined ? { files } : { files, parentDigest };
}

export function manifestEntry(bytes: Uint8Array): ManifestEntry {
  return { sizeBytes: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') };
}

/** What identifies the checkpoint as a whole. */
export function manifestDigest(manifestBytes: Uint8Array): string {
  return `sha256:${createHash('sha256').update(manifestBytes).digest('hex')}`;
}
