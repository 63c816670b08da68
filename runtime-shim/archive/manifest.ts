// stasis-manifest.json: the size and digest of every file of a checkpoint,
// written before the inventory. It is what tells a whole checkpoint from a
// truncated, altered or mixed-up one; images of other engines have none.
import { hash } from 'node:crypto';
import { FormatError, JsonReader, parseJson } from '../../oci-spec/json.js';

export const kManifestName = 'stasis-manifest.json';
/** Version 2 has page digests; without one, what is written is version 1. */
const kVersion = 2;

/** Digests in hexadecimal. A manifest has one of the two, the page digest for page files only. */
export interface ManifestEntry {
  readonly sizeBytes: number;
  readonly sha256?: string;
  /** nativecore/base/page_digest.h */
  readonly pageDigest?: string;
}

/** Those that page digests are for: plain and compressed. */
export const isPageFile = (name: string): boolean =>
  /^(parent\/)*pages-\d+\.img(\.lz4|\.zst)?$|^ghost-file-[0-9a-f]+\.img$/.test(name);

/** Whether a file with these digests is the one that the manifest means; `found` has the digest that it has. */
export function isSame(found: ManifestEntry, expected: ManifestEntry): boolean {
  if (found.sizeBytes !== expected.sizeBytes) return false;
  return expected.pageDigest === undefined
    ? found.sha256 === expected.sha256
    : found.pageDigest === expected.pageDigest;
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
  const version = files.some(([, entry]) => entry.pageDigest !== undefined) ? kVersion : 1;
  const parent = manifest.parentDigest === undefined ? '' : ` "parent": ${JSON.stringify(manifest.parentDigest)},\n`;
  // A line for each: JSON.stringify() with line breaks takes several times as long for the thousands that there may be.
  const lines = files.map(([name, { sizeBytes, sha256, pageDigest }]) => {
    const digest = pageDigest === undefined ? `"sha256": "${sha256}"` : `"xxh3": "${pageDigest}"`;
    return `  ${JSON.stringify(name)}: { "size": ${sizeBytes}, ${digest} }`;
  });
  return Buffer.from(`{\n "version": ${version},\n${parent} "files": {\n${lines.join(',\n')}\n }\n}\n`);
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
  if (version !== 1 && version !== kVersion)
    throw new FormatError('version', `is ${version}, this program reads 1 and ${kVersion}`);
  const files = document.field('files').map((entry): ManifestEntry => {
    const sizeBytes = entry.field('size').integer();
    const pageDigest = entry.field('xxh3').stringOr(undefined);
    if (pageDigest !== undefined) {
      if (version === 1 || !/^[0-9a-f]{32}$/.test(pageDigest)) throw new FormatError(entry.path, 'has no page digest');
      return { sizeBytes, pageDigest };
    }
    const sha256 = entry.field('sha256').string();
    if (!/^[0-9a-f]{64}$/.test(sha256)) throw new FormatError(entry.path, 'has no sha256 digest');
    return { sizeBytes, sha256 };
  });
  const parentDigest = document.field('parent').stringOr(undefined);
  if (parentDigest !== undefined && !/^sha256:[0-9a-f]{64}$/.test(parentDigest))
    throw new FormatError('parent', 'is no digest');
  return parentDigest === undefined ? { files } : { files, parentDigest };
}

/** As the core says it. */
export function pageFileEntry(file: { readonly sizeBytes: bigint; readonly digest: string }): ManifestEntry {
  return { sizeBytes: Number(file.sizeBytes), pageDigest: file.digest };
}

export function manifestEntry(bytes: Uint8Array): ManifestEntry {
  return { sizeBytes: bytes.length, sha256: hash('sha256', bytes, 'hex') };
}

/** What identifies the checkpoint as a whole. */
export function manifestDigest(manifestBytes: Uint8Array): string {
  return `sha256:${hash('sha256', manifestBytes, 'hex')}`;
}
