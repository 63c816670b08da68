// The digests of a file that comes in pieces: sha256, and of page files the page
// digest (nativecore/base/page_digest.h), which is a sum over blocks of the file.
import { createHash, type Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { nativeBinding } from '../../nativecore/index.js';
import type { ManifestEntry } from './manifest.js';

const kBlockBytes = 4096;

export class FileDigest {
  readonly #hash: Hash | undefined;
  readonly #pages: PageDigest | undefined;
  #sizeBytes = 0;

  constructor(wanted: { readonly sha256: boolean; readonly pages: boolean }) {
    this.#hash = wanted.sha256 ? createHash('sha256') : undefined;
    this.#pages = wanted.pages ? new PageDigest() : undefined;
  }

  update(piece: Buffer): void {
    this.#sizeBytes += piece.length;
    this.#hash?.update(piece);
    this.#pages?.update(piece);
  }

  entry(): ManifestEntry {
    return {
      sizeBytes: this.#sizeBytes,
      ...(this.#hash === undefined ? {} : { sha256: this.#hash.digest('hex') }),
      ...(this.#pages === undefined ? {} : { pageDigest: this.#pages.digest() }),
    };
  }
}

/** With the digest that `expected` has. */
export async function hashFile(path: string, expected: ManifestEntry): Promise<ManifestEntry> {
  const pages = expected.pageDigest !== undefined;
  const digest = new FileDigest({ sha256: !pages, pages });
  for await (const piece of createReadStream(path, { highWaterMark: 1 << 20 })) digest.update(piece as Buffer);
  return digest.entry();
}

class PageDigest {
  readonly #native = nativeBinding();
  readonly #sum = Buffer.alloc(16);
  #number = 0;
  /** Of a block that is not whole yet. */
  #rest = Buffer.alloc(0);

  update(piece: Buffer): void {
    let from = 0;
    if (this.#rest.length > 0) {
      from = Math.min(kBlockBytes - this.#rest.length, piece.length);
      this.#rest = Buffer.concat([this.#rest, piece.subarray(0, from)]);
      if (this.#rest.length < kBlockBytes) return;
      this.#add(this.#rest);
    }
    const end = piece.length - ((piece.length - from) % kBlockBytes);
    if (end > from) this.#add(piece.subarray(from, end));
    // A copy: the piece is its sender's.
    this.#rest = Buffer.from(piece.subarray(end));
  }

  digest(): string {
    if (this.#rest.length > 0) this.#add(this.#rest);
    const number = (at: number): string => this.#sum.readBigUInt64LE(at).toString(16).padStart(16, '0');
    return number(8) + number(0);
  }

  #add(blocks: Buffer): void {
    this.#native.addBlocks(this.#sum, this.#number, blocks);
    this.#number += Math.ceil(blocks.length / kBlockBytes);
  }
}
